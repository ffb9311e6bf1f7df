//! Which paths of a provider may be called, and where a path names the model.
//!
//! What is kept at a provider under the platform's account (files, batches, stored replies)
//! is shared by everybody who uses its key, so nothing of that is here: an operator who wants
//! it says so with `providers.paths`.

use http::Method;

use crate::config::ProviderKind;

const OPENAI: &[&str] = &[
    "chat/completions",
    "completions",
    "embeddings",
    "moderations",
    "responses",
    "responses/input_tokens",
];

const ANTHROPIC: &[&str] = &["v1/messages", "v1/messages/count_tokens"];

/// Calls on a model that stands in the path.
const GEMINI: &[&str] = &[
    "generateContent",
    "streamGenerateContent",
    "countTokens",
    "embedContent",
    "batchEmbedContents",
];
const BEDROCK: &[&str] = &[
    "converse",
    "converse-stream",
    "invoke",
    "invoke-with-response-stream",
];

/// Whether a path below a provider's base URL may be called. `also` are the configured ones.
pub(super) fn is_served(kind: ProviderKind, also: &[String], method: &Method, rest: &str) -> bool {
    let listed = match (kind, method.as_str()) {
        (ProviderKind::OpenAi | ProviderKind::Demo, "POST") => OPENAI.contains(&rest),
        (ProviderKind::OpenAi | ProviderKind::Demo, "GET") => one_below(rest, "models"),
        (ProviderKind::Anthropic, "POST") => ANTHROPIC.contains(&rest),
        (ProviderKind::Anthropic, "GET") => one_below(rest, "v1/models"),
        (ProviderKind::Gemini | ProviderKind::Bedrock, "POST") => model_in(kind, rest).is_some(),
        (ProviderKind::Gemini, "GET") => {
            one_below(rest, "v1beta/models") || one_below(rest, "v1/models")
        }
        _ => false,
    };
    listed || also.iter().any(|pattern| matches(pattern, rest))
}

/// The path itself, or one segment below it.
fn one_below(rest: &str, path: &str) -> bool {
    match rest.strip_prefix(path) {
        Some("") => true,
        Some(below) => below
            .strip_prefix('/')
            .is_some_and(|name| !name.is_empty() && !name.contains('/')),
        None => false,
    }
}

fn matches(pattern: &str, rest: &str) -> bool {
    match pattern.strip_suffix("/*") {
        Some(parent) => rest != parent && one_below(rest, parent),
        None => pattern == rest,
    }
}

/// Whether what is called names its model in the body.
pub(super) fn names_model_in_body(kind: ProviderKind) -> bool {
    matches!(
        kind,
        ProviderKind::OpenAi | ProviderKind::Anthropic | ProviderKind::Demo
    )
}

/// Whether what is called is answered by no model: counting and listing cost nothing, and
/// nothing is taken for them where a reply does not say what it cost.
pub(super) fn is_free(kind: ProviderKind, method: &Method, rest: &str) -> bool {
    *method == Method::GET
        || matches!(
            rest,
            "v1/messages/count_tokens" | "responses/input_tokens" | "moderations"
        )
        || model_in(kind, rest).is_some_and(|(_, _, call)| call == ":countTokens")
}

/// The model that a path names, still percent-encoded: what stands before and after it
/// together with it make the path.
pub(super) fn model_in(kind: ProviderKind, rest: &str) -> Option<(&str, &str, &str)> {
    let (before, model, after, calls) = match kind {
        ProviderKind::Gemini => {
            let below = rest
                .strip_prefix("v1beta/models/")
                .or_else(|| rest.strip_prefix("v1/models/"))?;
            let (model, call) = below.split_once(':')?;
            (rest.len() - below.len(), model, call, GEMINI)
        }
        ProviderKind::Bedrock => {
            let below = rest.strip_prefix("model/")?;
            let (model, call) = below.split_once('/')?;
            (rest.len() - below.len(), model, call, BEDROCK)
        }
        _ => return None,
    };
    if model.is_empty() || model.contains('/') || !calls.contains(&after) {
        return None;
    }
    Some((
        rest.get(..before)?,
        model,
        rest.get(before + model.len()..)?,
    ))
}

/// Undoes percent-encoding. `None` for what is no text.
pub(super) fn decoded(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        let value = digit(rest.next())? * 16 + digit(rest.next())?;
        bytes.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// A model's name as one segment of a path.
pub(super) fn encoded(model: &str) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(model.len());
    for byte in model.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_under_the_platforms_account_is_not_served() {
        let also = ["audio/speech".to_owned(), "files/*".to_owned()];
        let served =
            |kind, method: &str, rest| is_served(kind, &also, &method.parse().unwrap(), rest);
        use ProviderKind::{Anthropic, Bedrock, Gemini, OpenAi};
        for (kind, method, rest) in [
            (OpenAi, "POST", "chat/completions"),
            (OpenAi, "POST", "responses"),
            (OpenAi, "GET", "models"),
            (OpenAi, "GET", "models/gpt-x"),
            (OpenAi, "POST", "audio/speech"),
            (OpenAi, "GET", "files/f1"),
            (Anthropic, "POST", "v1/messages"),
            (Anthropic, "POST", "v1/messages/count_tokens"),
            (
                Gemini,
                "POST",
                "v1beta/models/gemini-2.5-pro:streamGenerateContent",
            ),
            (
                Bedrock,
                "POST",
                "model/anthropic.claude-v1%3A0/converse-stream",
            ),
        ] {
            assert!(served(kind, method, rest), "{method} {rest}");
        }
        for (kind, method, rest) in [
            (OpenAi, "GET", "files"),
            (OpenAi, "GET", "files/f1/content"),
            (OpenAi, "GET", "responses/resp_1"),
            (OpenAi, "DELETE", "models/gpt-x"),
            (OpenAi, "POST", "fine_tuning/jobs"),
            (OpenAi, "POST", "v1/messages"),
            (OpenAi, "GET", "organization/usage/completions"),
            (Anthropic, "GET", "v1/files"),
            (Anthropic, "POST", "v1/messages/batches"),
            (Anthropic, "GET", "v1/organizations/me"),
            (Gemini, "POST", "v1beta/tunedModels/x:generateContent"),
            (Gemini, "POST", "v1beta/models/x:delete"),
            (Bedrock, "POST", "model/x/y/converse"),
            (Bedrock, "POST", "model//converse"),
        ] {
            assert!(!served(kind, method, rest), "{method} {rest}");
        }
    }

    #[test]
    fn what_no_model_answers_is_free() {
        use ProviderKind::{Anthropic, Gemini, OpenAi};
        let free = |kind, method: Method, rest| is_free(kind, &method, rest);
        assert!(free(OpenAi, Method::GET, "models"));
        assert!(free(OpenAi, Method::POST, "responses/input_tokens"));
        assert!(free(Anthropic, Method::POST, "v1/messages/count_tokens"));
        assert!(free(Gemini, Method::POST, "v1beta/models/g:countTokens"));
        assert!(!free(OpenAi, Method::POST, "responses"));
        assert!(!free(Anthropic, Method::POST, "v1/messages"));
        assert!(!free(
            Gemini,
            Method::POST,
            "v1beta/models/g:generateContent"
        ));
    }

    #[test]
    fn a_path_gives_its_model_and_takes_another() {
        let (before, model, after) =
            model_in(ProviderKind::Bedrock, "model/a.b%3A0/invoke").unwrap();
        assert_eq!((before, after), ("model/", "/invoke"));
        assert_eq!(decoded(model).as_deref(), Some("a.b:0"));
        assert_eq!(encoded("a.b:0"), "a.b%3A0");
        let (before, model, after) =
            model_in(ProviderKind::Gemini, "v1beta/models/g-1:countTokens").unwrap();
        assert_eq!(
            (before, model, after),
            ("v1beta/models/", "g-1", ":countTokens")
        );
        assert_eq!(decoded("%zz"), None);
        assert_eq!(decoded("%ff"), None);
    }
}
