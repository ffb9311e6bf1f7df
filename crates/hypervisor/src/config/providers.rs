//! Model providers.

use std::path::PathBuf;

use url::Url;

use super::ConfigError;
use super::raw::RawProvider;
use super::values::existing_file;

/// The name and model of the offline demo provider.
const DEMO_NAME: &str = "demo";
const DEMO_MODEL: &str = "choir-demo";

/// The wire format of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProviderKind {
    /// OpenAI's; many others speak it too.
    OpenAi,
    /// Anthropic's.
    Anthropic,
    /// The built-in offline demo, in OpenAI's format.
    Demo,
}

/// A model provider.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Its name in gateway paths.
    pub name: String,
    /// Its wire format.
    pub kind: ProviderKind,
    /// Where its API lives; absent for the demo.
    pub base_url: Option<Url>,
    /// File that holds the platform key; read by the gateway, never here.
    pub key_file: Option<PathBuf>,
    /// Models that may be named.
    pub models: Vec<String>,
    /// The model taken when a run names none.
    pub default_model: String,
}

/// Validates the providers and puts the default one first.
pub(super) fn build_providers(raw: &[RawProvider]) -> Result<Vec<Provider>, ConfigError> {
    if raw.is_empty() {
        return Ok(vec![Provider {
            name: DEMO_NAME.to_owned(),
            kind: ProviderKind::Demo,
            base_url: None,
            key_file: None,
            models: vec![DEMO_MODEL.to_owned()],
            default_model: DEMO_MODEL.to_owned(),
        }]);
    }
    let mut providers: Vec<Provider> = Vec::with_capacity(raw.len());
    let mut default_at = None;
    for (at, one) in raw.iter().enumerate() {
        let provider = build_provider(one)?;
        if providers.iter().any(|other| other.name == provider.name) {
            return Err(ConfigError::value(
                "providers.name",
                &provider.name,
                "two providers have it",
                "a name of its own for each",
            ));
        }
        if one.default.is_some() && default_at.replace(at).is_some() {
            return Err(ConfigError::value(
                "providers.default",
                &provider.default_model,
                "two providers have a default model",
                "one default in all",
            ));
        }
        providers.push(provider);
    }
    let at = default_at.unwrap_or(0);
    if let Some(chosen) = providers.get_mut(..=at) {
        chosen.rotate_right(1);
    }
    Ok(providers)
}

fn build_provider(raw: &RawProvider) -> Result<Provider, ConfigError> {
    let name_ok = !raw.name.is_empty()
        && raw.name.len() <= 32
        && raw
            .name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !name_ok {
        return Err(ConfigError::value(
            "providers.name",
            &raw.name,
            "it is not usable in a path",
            "1 to 32 of a-z, 0-9 and -",
        ));
    }
    let kind = match raw.kind.as_str() {
        "openai" => ProviderKind::OpenAi,
        "anthropic" => ProviderKind::Anthropic,
        "demo" => ProviderKind::Demo,
        other => {
            return Err(ConfigError::value(
                "providers.kind",
                other,
                "there is no such kind",
                "openai, anthropic or demo",
            ));
        }
    };
    let base_url = raw.base_url.as_deref().map(base_url).transpose()?;
    if kind != ProviderKind::Demo && base_url.is_none() {
        return Err(ConfigError::value(
            "providers.base_url",
            "",
            format!("the provider {} needs it", raw.name),
            "a URL such as https://api.openai.com/v1 or https://api.anthropic.com",
        ));
    }
    if let Some(file) = &raw.key_file {
        existing_file("providers.key_file", file)?;
    }
    let models = if raw.models.is_empty() && kind == ProviderKind::Demo {
        vec![DEMO_MODEL.to_owned()]
    } else {
        raw.models.clone()
    };
    let Some(default_model) = raw.default.clone().or_else(|| models.first().cloned()) else {
        return Err(ConfigError::value(
            "providers.models",
            "[]",
            format!("the provider {} has no model", raw.name),
            "at least one model name",
        ));
    };
    if !models.contains(&default_model) {
        return Err(ConfigError::value(
            "providers.default",
            default_model,
            "it is not among providers.models",
            models.join(", "),
        ));
    }
    Ok(Provider {
        name: raw.name.clone(),
        kind,
        base_url,
        key_file: raw.key_file.clone(),
        models,
        default_model,
    })
}

fn base_url(text: &str) -> Result<Url, ConfigError> {
    let valid = "a URL such as https://api.openai.com/v1";
    let url = Url::parse(text).map_err(|error| {
        ConfigError::value("providers.base_url", text, error.to_string(), valid)
    })?;
    if !matches!(url.scheme(), "https" | "http") || url.host().is_none() {
        return Err(ConfigError::value(
            "providers.base_url",
            text,
            "it is neither http nor https",
            valid,
        ));
    }
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err(ConfigError::value(
            "providers.base_url",
            text,
            "it holds credentials, a query or a fragment",
            "a bare URL, and the key in key_file",
        ));
    }
    Ok(url)
}
