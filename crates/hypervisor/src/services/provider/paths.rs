//! Which calls a provider takes: the path, the query, and where the model is named.
//!
//! What is kept at a provider under the platform's account (files, batches, stored replies)
//! is shared by everybody who uses its key, so nothing of that is here: an operator who wants
//! it says so with `providers.paths`.

use http::Method;
use http::header::CONTENT_ENCODING;
use http::request::Parts;

use super::answer::CallError;
use crate::config::{ModelCheck, Provider, ProviderKind, ProviderPath};

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

/// Where a call names its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names<'a> {
    /// In the path, still percent-encoded.
    InPath(&'a str),
    /// In the body, which has to be JSON.
    InBody,
    /// The same, or in a form with files, which is how uploads are sent.
    InBodyOrForm,
    /// Wherever it likes: the operator lets this path through unread. Only a body that is
    /// JSON and names a model is held to the table all the same.
    Unchecked,
    /// Nowhere.
    Nowhere,
}

/// Whether a call may be made, judged by its path and its headers. `tables` are the provider
/// that the path names, or all those that the model in the body may name.
///
/// # Errors
/// The path is not served, or the body is compressed, so that nobody could read it.
pub(super) fn admit<'a, 't>(
    kind: ProviderKind,
    tables: Tables<'t, impl Iterator<Item = &'t Provider>>,
    parts: &Parts,
    rest: &'a str,
) -> Result<Names<'a>, CallError> {
    let method = &parts.method;
    let listed = is_listed(kind, method, rest);
    let serves = |entry: &&ProviderPath| serves(entry, method, rest);
    let entry = match tables {
        Tables::Of(provider) => provider.paths.iter().find(serves),
        // Without a name and without a model it would be anybody's.
        Tables::All(_) if listed => None,
        Tables::All(providers) => providers
            .flat_map(|provider| &provider.paths)
            .filter(|entry| entry.model == ModelCheck::Named)
            .find(serves),
    };
    if !listed && entry.is_none() {
        return Err(not_served(method, rest));
    }
    let plain = |coding: &http::HeaderValue| coding == "identity";
    if !parts.headers.get_all(CONTENT_ENCODING).iter().all(plain) {
        return Err(CallError::Compressed);
    }
    if let Some((_, model, _)) = model_in(kind, rest) {
        return Ok(Names::InPath(model));
    }
    if [Method::GET, Method::DELETE].contains(method) {
        return Ok(Names::Nowhere);
    }
    Ok(match entry.map(|entry| entry.model) {
        Some(ModelCheck::Unchecked) if !listed => Names::Unchecked,
        Some(ModelCheck::Named) if !listed => Names::InBodyOrForm,
        _ => Names::InBody,
    })
}

/// Whose table a path has to be in.
pub(super) enum Tables<'t, I> {
    /// That of the provider that the path names.
    Of(&'t Provider),
    /// That of anybody who may be chosen by the model.
    All(I),
}

/// Whether a provider takes a path, whichever way it was found.
///
/// # Errors
/// It is not in its table.
pub(super) fn admit_path(
    provider: &Provider,
    method: &Method,
    rest: &str,
) -> Result<(), CallError> {
    let configured = || {
        provider
            .paths
            .iter()
            .any(|entry| serves(entry, method, rest))
    };
    if is_listed(provider.kind, method, rest) || configured() {
        return Ok(());
    }
    Err(not_served(method, rest))
}

fn not_served(method: &Method, rest: &str) -> CallError {
    CallError::Path {
        method: method.to_string(),
        path: rest.chars().take(200).collect(),
    }
}

/// Whether a provider takes a query. Whichever way it was found: by its name or by a model.
///
/// # Errors
/// A parameter that does not go up.
pub(super) fn admit_query(provider: &Provider, query: &str) -> Result<(), CallError> {
    match unlisted_query(provider.kind, &provider.query, query) {
        None => Ok(()),
        Some(name) => Err(CallError::Query {
            name: name.chars().take(100).collect(),
        }),
    }
}

/// Whether a path is one of its kind's.
fn is_listed(kind: ProviderKind, method: &Method, rest: &str) -> bool {
    let calls = |calls: &[&str], separator: char| {
        model_in(kind, rest).is_some_and(|(before, _, after)| {
            matches!(before, "v1beta/models/" | "v1/models/" | "model/")
                && after
                    .strip_prefix(separator)
                    .is_some_and(|call| calls.contains(&call))
        })
    };
    *method == Method::POST
        && match kind {
            ProviderKind::OpenAi | ProviderKind::Demo => OPENAI.contains(&rest),
            ProviderKind::Anthropic => ANTHROPIC.contains(&rest),
            ProviderKind::Gemini => calls(GEMINI, ':'),
            ProviderKind::Bedrock => calls(BEDROCK, '/'),
        }
}

/// Whether a call asks what models there are, or with a name what one of them is: that is
/// answered from the table. A provider would tell of everything that its account has.
pub(super) fn listing<'a>(
    kind: ProviderKind,
    method: &Method,
    rest: &'a str,
) -> Option<Option<&'a str>> {
    let parents: &[&str] = match kind {
        ProviderKind::OpenAi | ProviderKind::Demo => &["models"],
        ProviderKind::Anthropic => &["v1/models"],
        ProviderKind::Gemini => &["v1beta/models", "v1/models"],
        ProviderKind::Bedrock => &[],
    };
    let parent = parents.iter().find(|parent| one_below(rest, parent))?;
    let name = rest.strip_prefix(parent)?.strip_prefix('/');
    (*method == Method::GET).then_some(name)
}

fn serves(entry: &ProviderPath, method: &Method, rest: &str) -> bool {
    let method_fits = match &entry.method {
        Some(only) => only == method,
        None => [Method::GET, Method::POST].contains(method),
    };
    method_fits && matches(&entry.pattern, rest)
}

/// The first parameter of a query that does not go up. An allowlist, because credentials have
/// too many names: with one of its own a caller would be somebody else at the provider.
fn unlisted_query(kind: ProviderKind, also: &[String], query: &str) -> Option<String> {
    let listed: &[&str] = match kind {
        ProviderKind::OpenAi | ProviderKind::Demo => &[
            "after",
            "api-version",
            "before",
            "beta",
            "include",
            "include[]",
            "limit",
            "order",
            "purpose",
        ],
        ProviderKind::Anthropic => &["after_id", "before_id", "beta", "limit"],
        ProviderKind::Gemini => &["$alt", "alt", "pageSize", "pageToken", "prettyPrint"],
        ProviderKind::Bedrock => &[],
    };
    query
        // Some servers take a semicolon for an ampersand.
        .split(['&', ';'])
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split('=').next().unwrap_or_default())
        .map(|name| decoded(name).unwrap_or_else(|| name.to_owned()))
        .find(|name| !listed.contains(&name.as_str()) && !also.contains(name))
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
/// together with it make the path. It is named there whatever is called on it.
pub(super) fn model_in(kind: ProviderKind, rest: &str) -> Option<(&str, &str, &str)> {
    let parents: &[&str] = match kind {
        // The latter two are Azure's, which reads no model in the body.
        ProviderKind::OpenAi | ProviderKind::Demo => &["models", "engines", "deployments"],
        ProviderKind::Anthropic => &["models"],
        ProviderKind::Gemini => &["models", "tunedModels"],
        ProviderKind::Bedrock => &["model"],
    };
    let mut start = 0;
    let mut segments = rest.split('/');
    for segment in segments.by_ref() {
        start += segment.len() + 1;
        if parents.contains(&segment) {
            break;
        }
    }
    let segment = segments.next()?;
    let model = match kind {
        ProviderKind::Gemini => segment.split(':').next().unwrap_or_default(),
        _ => segment,
    };
    let end = start + model.len();
    (!model.is_empty()).then_some((rest.get(..start)?, model, rest.get(end..)?))
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

    use ProviderKind::{Anthropic, Bedrock, Gemini, OpenAi};

    fn entry(method: Option<Method>, pattern: &str, model: ModelCheck) -> ProviderPath {
        ProviderPath {
            method,
            pattern: pattern.to_owned(),
            model,
        }
    }

    #[test]
    fn what_is_stored_under_the_platforms_account_is_not_served() {
        let served = |kind, method: &str, rest| {
            let method = method.parse().unwrap();
            is_listed(kind, &method, rest)
        };
        for (kind, method, rest) in [
            (OpenAi, "POST", "chat/completions"),
            (OpenAi, "POST", "responses"),
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
            (Gemini, "POST", "v1beta/models/x%3AgenerateContent"),
            (Bedrock, "POST", "model/x/y/converse"),
            (Bedrock, "POST", "model//converse"),
        ] {
            assert!(!served(kind, method, rest), "{method} {rest}");
        }
    }

    #[test]
    fn what_is_configured_is_served_with_its_methods() {
        let any = entry(None, "files/*", ModelCheck::Named);
        let one = entry(Some(Method::DELETE), "files/*", ModelCheck::Named);
        let fits = |entry, method: Method, rest| serves(entry, &method, rest);
        assert!(fits(&any, Method::GET, "files/f1"));
        assert!(fits(&any, Method::POST, "files/f1"));
        assert!(!fits(&any, Method::DELETE, "files/f1"));
        assert!(!fits(&any, Method::GET, "files"));
        assert!(!fits(&any, Method::GET, "files/f1/content"));
        assert!(fits(&one, Method::DELETE, "files/f1"));
        assert!(!fits(&one, Method::GET, "files/f1"));
    }

    #[test]
    fn what_models_there_are_is_asked_with_get_only() {
        let listing = |kind, rest| listing(kind, &Method::GET, rest);
        assert_eq!(listing(OpenAi, "models"), Some(None));
        assert_eq!(listing(OpenAi, "models/gpt-x"), Some(Some("gpt-x")));
        assert_eq!(listing(Anthropic, "v1/models"), Some(None));
        assert_eq!(listing(Gemini, "v1beta/models/g"), Some(Some("g")));
        assert_eq!(listing(OpenAi, "models/a/b"), None);
        assert_eq!(super::listing(OpenAi, &Method::DELETE, "models/a"), None);
    }

    #[test]
    fn a_query_goes_up_by_the_names_of_its_parameters() {
        let also = ["expand".to_owned()];
        let refused = |kind, query| unlisted_query(kind, &also, query);
        for (kind, query) in [
            (OpenAi, ""),
            (OpenAi, "api-version=2024-10-21&beta=true"),
            (OpenAi, "include%5B%5D=usage&expand=1&"),
            (Anthropic, "beta=true"),
            (Gemini, "alt=sse"),
            (Gemini, "%24alt=json%3Benum-encoding%3Dint"),
        ] {
            assert_eq!(refused(kind, query), None, "{query}");
        }
        for (kind, query, name) in [
            (Gemini, "alt=sse&key=AIza", "key"),
            (Gemini, "alt=sse&k%65y=AIza", "key"),
            (Gemini, "alt=sse;key=AIza", "key"),
            (Gemini, "access_token=x", "access_token"),
            (OpenAi, "api_key=x", "api_key"),
            (OpenAi, "Beta=x", "Beta"),
            (OpenAi, "%ff=x", "%ff"),
            (OpenAi, "beta%00=x", "beta\0"),
            (Bedrock, "X-Amz-Signature=x", "X-Amz-Signature"),
            (Bedrock, "x-goog-api-key=x", "x-goog-api-key"),
        ] {
            assert_eq!(refused(kind, query).as_deref(), Some(name), "{query}");
        }
    }

    #[test]
    fn what_no_model_answers_is_free() {
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
        let (before, model, after) = model_in(Bedrock, "model/a.b%3A0/invoke").unwrap();
        assert_eq!((before, after), ("model/", "/invoke"));
        assert_eq!(decoded(model).as_deref(), Some("a.b:0"));
        assert_eq!(encoded("a.b:0"), "a.b%3A0");
        let (before, model, after) = model_in(Gemini, "v1beta/models/g-1:countTokens").unwrap();
        assert_eq!(
            (before, model, after),
            ("v1beta/models/", "g-1", ":countTokens")
        );
        let named = |kind, rest| model_in(kind, rest).map(|(_, model, _)| model);
        for (kind, rest, model) in [
            (Gemini, "v1beta/models/g:predict", Some("g")),
            (
                Gemini,
                "v1beta/models/g%3AgenerateContent",
                Some("g%3AgenerateContent"),
            ),
            (Gemini, "v1alpha/tunedModels/t/operations/o", Some("t")),
            (Gemini, "v1beta/models", None),
            (Bedrock, "model/m/async-invoke", Some("m")),
            (OpenAi, "deployments/d/chat/completions", Some("d")),
            (OpenAi, "chat/completions", None),
        ] {
            assert_eq!(named(kind, rest), model, "{rest}");
        }
        assert_eq!(decoded("%zz"), None);
        assert_eq!(decoded("%ff"), None);
    }
}
