//! What comes out of the policy.

use std::fmt;

use serde::Serialize;

/// The outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// It may happen.
    Allow,
    /// It may not.
    Deny,
}

/// One reason: the rule that spoke, and what it says to people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// Stable name of the rule, such as `owner-manages-own-sandboxes`.
    pub rule: &'static str,
    /// The end of the sentence "allowed because …" or "denied because …".
    pub text: String,
}

/// A decision. There is always at least one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The outcome.
    pub effect: Effect,
    /// Why, the decisive reason first.
    pub reasons: Vec<Reason>,
}

impl Decision {
    /// Whether it may happen.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.effect == Effect::Allow
    }

    /// Names of the rules that spoke, separated by commas, for the ledger.
    #[must_use]
    pub fn rules(&self) -> String {
        self.reasons
            .iter()
            .map(|reason| reason.rule)
            .collect::<Vec<_>>()
            .join(",")
    }

    pub(crate) fn allow(rule: &'static str, text: impl Into<String>) -> Self {
        Self {
            effect: Effect::Allow,
            reasons: vec![Reason {
                rule,
                text: text.into(),
            }],
        }
    }

    pub(crate) fn deny(rule: &'static str, text: impl Into<String>) -> Self {
        Self {
            effect: Effect::Deny,
            reasons: vec![Reason {
                rule,
                text: text.into(),
            }],
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.effect {
            Effect::Allow => "allowed",
            Effect::Deny => "denied",
        })?;
        for (index, reason) in self.reasons.iter().enumerate() {
            write!(
                f,
                "{}{}",
                if index == 0 {
                    " because "
                } else {
                    ", and because "
                },
                reason.text
            )?;
        }
        Ok(())
    }
}
