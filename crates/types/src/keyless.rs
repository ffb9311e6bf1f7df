//! The keyless rule: a sandbox that finds a provider credential in its environment
//! does not start (seed "Sandbox Key + Gateway", arch §5).

/// Variables that hold a provider credential by name.
const CREDENTIAL_NAMES: &[&str] = &[
    "AI21_API_KEY",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_BEARER_TOKEN_BEDROCK",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_API_KEY",
    "AZURE_OPENAI_API_KEY",
    "CEREBRAS_API_KEY",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "COHERE_API_KEY",
    "DEEPSEEK_API_KEY",
    "FIREWORKS_API_KEY",
    "GEMINI_API_KEY",
    "GOOGLE_API_KEY",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GROQ_API_KEY",
    "HF_TOKEN",
    "HUGGINGFACE_API_KEY",
    "KIMI_API_KEY",
    "MISTRAL_API_KEY",
    "MOONSHOT_API_KEY",
    "OPENAI_API_KEY",
    "OPENROUTER_API_KEY",
    "PERPLEXITY_API_KEY",
    "REPLICATE_API_TOKEN",
    "TOGETHER_API_KEY",
    "VERTEX_API_KEY",
    "XAI_API_KEY",
    "ZAI_API_KEY",
];

/// Name endings that mark a credential whatever provider it is for.
const CREDENTIAL_ENDINGS: &[&str] = &["_API_KEY", "_APIKEY", "_SECRET_KEY", "_ACCESS_KEY"];

/// Beginnings of values that only a provider credential has.
const CREDENTIAL_SHAPES: &[&str] = &[
    "sk-", "sk_live_", "xai-", "gsk_", "AIza", "AKIA", "ASIA", "hf_", "r8_", "pplx-", "fw_",
    "ABSK", "csk-", "tgp_v1_", "nvapi-",
];

/// Shorter values are taken for words, not for credentials.
const SHAPE_MIN_LENGTH: usize = 16;

/// The beginning of every gateway token; the crate `crypto` makes and checks the rest.
pub const GATEWAY_TOKEN_PREFIX: &str = "choirgw_";

/// How a variable was recognised as a credential. Never carries the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// By its name.
    Name,
    /// By the shape of its value.
    Shape,
}

/// Whether a value has the shape of a gateway token (the one credential a sandbox may hold).
#[must_use]
pub fn is_gateway_token_shaped(value: &str) -> bool {
    value
        .strip_prefix(GATEWAY_TOKEN_PREFIX)
        .is_some_and(|rest| {
            rest.len() >= 40
                && rest
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        })
}

/// Whether a variable holds a provider credential, and how that shows.
///
/// A value with the shape of a gateway token is exempt under any name.
#[must_use]
pub fn credential(name: &str, value: &str) -> Option<Reason> {
    if value.is_empty() || is_gateway_token_shaped(value) {
        return None;
    }
    let upper = name.to_ascii_uppercase();
    if CREDENTIAL_NAMES.contains(&upper.as_str())
        || CREDENTIAL_ENDINGS
            .iter()
            .any(|ending| upper.ends_with(ending))
    {
        return Some(Reason::Name);
    }
    if value.len() >= SHAPE_MIN_LENGTH
        && CREDENTIAL_SHAPES
            .iter()
            .any(|shape| value.starts_with(shape))
    {
        return Some(Reason::Shape);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Reason, credential};

    #[test]
    fn finds_credentials_by_name_and_by_shape() {
        assert_eq!(credential("OPENAI_API_KEY", "x"), Some(Reason::Name));
        assert_eq!(credential("openai_api_key", "x"), Some(Reason::Name));
        assert_eq!(credential("NEWCOMER_API_KEY", "x"), Some(Reason::Name));
        assert_eq!(
            credential("NOTE", "sk-0123456789abcdef"),
            Some(Reason::Shape)
        );
    }

    #[test]
    fn leaves_ordinary_variables_alone() {
        assert_eq!(credential("PATH", "/usr/bin"), None);
        assert_eq!(credential("OPENAI_API_KEY", ""), None);
        assert_eq!(credential("NOTE", "sk-8"), None);
    }

    #[test]
    fn exempts_the_gateway_token_only_in_its_shape() {
        let token = format!("choirgw_{}", "a".repeat(50));
        assert_eq!(credential("OPENAI_API_KEY", &token), None);
        assert_eq!(
            credential("OPENAI_API_KEY", "choirgw_short"),
            Some(Reason::Name)
        );
    }
}
