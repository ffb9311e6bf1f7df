//! The models that the gateway offers, and the choice among them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::conductor::ConductorError;

/// Which wire format a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// OpenAI chat completions.
    #[serde(rename = "openai")]
    OpenAi,
    /// Anthropic messages.
    Anthropic,
}

/// One provider of the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Provider {
    /// Its name in paths and in `provider/model`.
    pub name: String,
    /// Its wire format.
    pub kind: ProviderKind,
    /// The models that are known; others may work.
    #[serde(default)]
    pub models: Vec<String>,
    /// It is the offline demo and no language model.
    #[serde(default)]
    pub demo: bool,
}

/// A model of a provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelName {
    /// The provider's name.
    pub provider: String,
    /// The model's name.
    pub model: String,
}

/// What the gateway offers to the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(from = "Listing")]
pub struct Providers {
    /// The providers whose wire format the agent speaks.
    pub providers: Vec<Provider>,
    /// What is used when nothing is asked for.
    pub default: Option<ModelName>,
    /// The names of the others, which programs in the sandbox can use all the same.
    #[serde(skip)]
    others: Vec<String>,
}

/// All that the gateway offers.
#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    providers: Vec<Listed>,
    #[serde(default)]
    default: Option<ModelName>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Listed {
    Spoken(Provider),
    Other { name: String },
}

impl From<Listing> for Providers {
    fn from(listing: Listing) -> Self {
        let mut offered = Self::default();
        for listed in listing.providers {
            match listed {
                Listed::Spoken(provider) => offered.providers.push(provider),
                Listed::Other { name } => offered.others.push(name),
            }
        }
        let is_spoken = |model: &ModelName| !offered.others.contains(&model.provider);
        offered.default = listing
            .default
            .filter(is_spoken)
            .or_else(|| offered.providers.iter().find_map(Provider::first));
        offered
    }
}

impl Provider {
    fn first(&self) -> Option<ModelName> {
        Some(ModelName {
            provider: self.name.clone(),
            model: self.models.first()?.clone(),
        })
    }
}

/// A model that was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) provider: String,
    pub(crate) kind: ProviderKind,
    pub(crate) model: String,
}

impl Choice {
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.provider, self.model)
    }
}

impl Providers {
    /// Chooses what is asked for as `provider/model`, or the default.
    pub(crate) fn choose(&self, asked: Option<&str>) -> Result<Choice, ConductorError> {
        let (provider, model) = match (asked, &self.default) {
            (Some(asked), _) => asked
                .split_once('/')
                .filter(|(provider, model)| !provider.is_empty() && !model.is_empty())
                .ok_or_else(|| self.unknown(asked))?,
            (None, Some(default)) => (default.provider.as_str(), default.model.as_str()),
            (None, None) if self.others.is_empty() => return Err(ConductorError::NoModel),
            (None, None) => return Err(self.unspoken(&self.others)),
        };
        let found = self.providers.iter().find(|one| one.name == provider);
        let found = found.ok_or_else(|| match asked {
            Some(_) if self.others.iter().any(|other| other == provider) => {
                self.unspoken(&[provider.to_owned()])
            }
            Some(asked) => self.unknown(asked),
            None => ConductorError::NoModel,
        })?;
        // The demo has exactly its models; a real provider may have more than are listed.
        if found.demo && !found.models.iter().any(|one| one == model) {
            return Err(self.unknown(&format!("{provider}/{model}")));
        }
        Ok(Choice {
            provider: provider.to_owned(),
            kind: found.kind,
            model: model.to_owned(),
        })
    }

    fn unknown(&self, asked: &str) -> ConductorError {
        ConductorError::Model {
            asked: asked.chars().take(200).collect(),
            known: self.known(),
        }
    }

    fn unspoken(&self, others: &[String]) -> ConductorError {
        ConductorError::Format {
            others: others.join(", "),
            known: self.known(),
        }
    }

    /// The models that can be asked for.
    fn known(&self) -> String {
        let known: Vec<_> = self
            .providers
            .iter()
            .flat_map(|one| {
                one.models
                    .iter()
                    .map(|model| format!("{}/{model}", one.name))
            })
            .collect();
        if known.is_empty() {
            return "none".to_owned();
        }
        known.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::{ModelName, Provider, ProviderKind, Providers};

    fn offered() -> Providers {
        let provider = |name: &str, model: &str, demo| Provider {
            name: name.to_owned(),
            kind: ProviderKind::OpenAi,
            models: vec![model.to_owned()],
            demo,
        };
        Providers {
            providers: vec![
                provider("demo", "choir-demo", true),
                provider("real", "big", false),
            ],
            default: Some(ModelName {
                provider: "real".into(),
                model: "big".into(),
            }),
            others: vec!["gem".into()],
        }
    }

    #[test]
    fn providers_of_another_format_are_left_to_others() {
        let listing = r#"{"providers": [
            {"name": "gem", "kind": "gemini", "models": ["pro"], "aliases": [], "demo": false},
            {"name": "real", "kind": "anthropic", "models": ["big"], "aliases": [], "demo": false},
            {"name": "aws", "kind": "of tomorrow", "models": ["x"]}
        ], "default": {"provider": "gem", "model": "pro"}}"#;
        let offered: Providers = serde_json::from_str(listing).unwrap();
        assert_eq!(offered.choose(None).unwrap().name(), "real/big");
        assert_eq!(offered.others, ["gem", "aws"]);
        let error = offered.choose(Some("gem/pro")).unwrap_err().to_string();
        assert!(
            error.contains("does not speak") && error.contains("real/big"),
            "{error}"
        );
        let none = Providers {
            providers: Vec::new(),
            default: None,
            ..offered
        };
        let error = none.choose(None).unwrap_err().to_string();
        assert!(
            error.contains("gem, aws") && error.contains("none"),
            "{error}"
        );
    }

    #[test]
    fn chooses_what_is_asked_for_or_the_default() {
        let offered = offered();
        assert_eq!(offered.choose(None).unwrap().name(), "real/big");
        assert_eq!(
            offered.choose(Some("real/org/other")).unwrap().model,
            "org/other"
        );
        assert_eq!(
            offered.choose(Some("demo/choir-demo")).unwrap().provider,
            "demo"
        );
    }

    #[test]
    fn an_unknown_model_is_refused_with_the_known_ones() {
        for asked in ["nobody/x", "big", "/x", "real/", "demo/other"] {
            let error = offered().choose(Some(asked)).unwrap_err().to_string();
            assert!(error.contains("real/big"), "{error}");
        }
        assert!(Providers::default().choose(None).is_err());
    }
}
