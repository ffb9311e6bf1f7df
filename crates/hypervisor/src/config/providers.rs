//! Model providers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use gateway::provider::PassedHeaders;
use http::{HeaderName, Method};
use url::Url;

use super::ConfigError;
use super::gateway::{Gateway, Rates, nano_dollars};
use super::raw::{RawPath, RawProvider, RawUpstream};
use super::values::{duration, existing_file, within};

/// The name and model of the offline demo provider.
const DEMO_NAME: &str = "demo";
const DEMO_MODEL: &str = "choir-demo";

/// Most places or keys of one provider.
const MAX_UPSTREAMS: usize = 32;

/// Calls that may be open at one place, unless the configuration says otherwise.
const CONNECTIONS: usize = 256;

/// Headers that no configuration lets through: whose account is charged, where a reply is
/// sent, and how a message is framed are not the caller's to say.
const NEVER: [&str; 25] = [
    "accept-encoding",
    "api-key",
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "cookie",
    "forwarded",
    "host",
    "keep-alive",
    "openai-organization",
    "openai-project",
    "origin",
    "referer",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
    "x-api-key",
    "x-goog-api-key",
    "x-goog-user-project",
    "x-real-ip",
];

/// The same, for every header that begins so.
const NEVER_FROM: [&str; 5] = ["proxy-", "x-amz-", "x-auth-", "x-choir-", "x-forwarded-"];

/// Query parameters that no configuration lets through, and what such names begin with: a
/// caller could be somebody else at the provider, or show it the gateway's own token.
const NEVER_ASKED: [&str; 14] = [
    "access_token",
    "api-key",
    "api_key",
    "apikey",
    "auth",
    "authorization",
    "awsaccesskeyid",
    "credential",
    "key",
    "password",
    "secret",
    "sig",
    "signature",
    "token",
];
const NEVER_ASKED_FROM: [&str; 2] = ["x-amz-", "x-goog-"];

/// The wire format of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProviderKind {
    /// OpenAI's; many others speak it too, vLLM and Ollama among them.
    OpenAi,
    /// Anthropic's.
    Anthropic,
    /// Google's Gemini.
    Gemini,
    /// Amazon Bedrock with an API key.
    Bedrock,
    /// The built-in offline demo, in OpenAI's format.
    Demo,
}

impl ProviderKind {
    /// The kind as it stands in the configuration and in listings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::Gemini => "gemini",
            Self::Bedrock => "bedrock",
            Self::Demo => "demo",
        }
    }
}

/// Which addresses a provider may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Addresses {
    /// Public ones: a name that suddenly resolves to this machine or its network is refused.
    #[default]
    Public,
    /// Private, loopback and link-local ones too, for a model server of one's own.
    PrivateNetworkToo,
}

/// A path that may be called beside those of a provider's kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderPath {
    /// The one method it has; GET and POST when absent.
    pub method: Option<Method>,
    /// Below the base URL; a `*` at the end stands for one more segment.
    pub pattern: String,
    /// What becomes of the model.
    pub model: ModelCheck,
}

/// What a call on a configured path has to say about its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ModelCheck {
    /// It names one of the provider's, in its path, in a JSON body or in a form with files.
    #[default]
    Named,
    /// Nothing: uploads and forms go up unread, to whatever model they name, at no price.
    Unchecked,
}

/// Whether the keys go up by which callers let a router choose models for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Routing {
    /// They do not.
    #[default]
    Refused,
    /// They do, and reach models that are not in the provider's list and have no price.
    PastTheModelList,
}

/// One place where a provider's API lives.
#[derive(Debug, Clone)]
pub struct ProviderUpstream {
    /// The API's base URL.
    pub base_url: Url,
    /// File that holds the platform key; read by the gateway, never here.
    pub key_file: Option<PathBuf>,
    /// Its share of the calls, against the others'.
    pub weight: u32,
}

/// What a model costs, in billionths of a US dollar: for a million tokens, and for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    /// Tokens read.
    pub input: i64,
    /// Tokens written.
    pub output: i64,
    /// Tokens read that came from a cache.
    pub cached_input: i64,
    /// Tokens read that were put into a cache.
    pub cache_write: i64,
    /// Those of them that are kept there for an hour.
    pub cache_write_1h: i64,
    /// A call with files whose reply does not tell its tokens; when absent, what as much text
    /// would cost.
    pub call: Option<i64>,
}

/// Bounds in time of a provider's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Longest wait for a connection.
    pub connect: Duration,
    /// Longest wait for the reply to begin.
    pub first_byte: Duration,
    /// Longest silence in a reply.
    pub idle: Duration,
    /// Longest whole reply; unbounded when absent.
    pub whole: Option<Duration>,
}

/// A model provider.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Its name in gateway paths.
    pub name: String,
    /// Its wire format.
    pub kind: ProviderKind,
    /// Where its API lives; empty for the demo.
    pub upstreams: Vec<ProviderUpstream>,
    /// Models that may be named.
    pub models: Vec<String>,
    /// The model taken when a run names none.
    pub default_model: String,
    /// Names that stand for models.
    pub aliases: BTreeMap<String, String>,
    /// What models cost; under a budget every model has to be here.
    pub prices: BTreeMap<String, Price>,
    /// Paths that may be called beside those of its kind.
    pub paths: Vec<ProviderPath>,
    /// Query parameters that may go up beside those of its kind.
    pub query: Vec<String>,
    /// Whether callers may let a router choose the model.
    pub routing: Routing,
    /// Request headers that may go up.
    pub headers_up: PassedHeaders,
    /// Response headers that may come down.
    pub headers_down: PassedHeaders,
    /// Which addresses it may have.
    pub addresses: Addresses,
    /// PEM file with the only certificates that are trusted.
    pub ca_file: Option<PathBuf>,
    /// Bounds in time.
    pub timeouts: Timeouts,
    /// How often a call that did not succeed is sent again.
    pub retries: u32,
    /// Providers that take a call when this one cannot, in this order.
    pub fallback: Vec<String>,
    /// Calls that may be open at each of its places.
    pub connections: usize,
    /// Bounds of all callers together.
    pub limits: Rates,
}

/// Validates the providers and puts the default one first.
pub(super) fn build_providers(raw: &[RawProvider]) -> Result<Vec<Provider>, ConfigError> {
    if raw.is_empty() {
        let demo = RawProvider {
            name: DEMO_NAME.to_owned(),
            kind: "demo".to_owned(),
            ..RawProvider::default()
        };
        return Ok(vec![build_provider(&demo)?]);
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
    check_fallbacks(&providers)?;
    let at = default_at.unwrap_or(0);
    if let Some(chosen) = providers.get_mut(..=at) {
        chosen.rotate_right(1);
    }
    Ok(providers)
}

/// A fallback has to be there, speak the same format and offer a model of the same name.
fn check_fallbacks(providers: &[Provider]) -> Result<(), ConfigError> {
    for provider in providers {
        for name in &provider.fallback {
            let other = providers.iter().find(|other| other.name == *name);
            let fits = other.is_some_and(|other| {
                other.name != provider.name
                    && other.kind == provider.kind
                    && provider
                        .models
                        .iter()
                        .any(|model| other.resolve(model).is_some())
            });
            if !fits {
                return Err(ConfigError::value(
                    "providers.fallback",
                    name,
                    format!("it cannot take calls of {}", provider.name),
                    "another provider of the same kind that offers one of its models, or an alias of that name",
                ));
            }
        }
    }
    Ok(())
}

/// Under a budget every model has to have a price: one without would be free, and a slip of
/// the pen in its name would switch the budget off.
pub(super) fn check_budgets(providers: &[Provider], gateway: &Gateway) -> Result<(), ConfigError> {
    for provider in providers {
        let budget = [
            ("gateway.sandbox", &gateway.sandbox),
            ("gateway.user", &gateway.user),
            ("providers.limits", &provider.limits),
        ]
        .into_iter()
        .find(|(_, rates)| rates.daily_budget.or(rates.monthly_budget).is_some());
        let unpriced = provider
            .models
            .iter()
            .find(|model| !provider.prices.contains_key(*model));
        if let (Some((key, _)), Some(model)) = (budget, unpriced)
            && provider.kind != ProviderKind::Demo
        {
            return Err(ConfigError::value(
                "providers.prices",
                model,
                format!("it has no price, and {key} has a budget, which it would not count in"),
                format!(
                    "a price for each model of {}; {{ input = 0.0, output = 0.0 }} for a free one",
                    provider.name
                ),
            ));
        }
    }
    Ok(())
}

impl Provider {
    /// The model that a name stands for, if this provider offers it.
    #[must_use]
    pub fn resolve(&self, name: &str) -> Option<&str> {
        let name = self.aliases.get(name).map_or(name, String::as_str);
        self.models
            .iter()
            .map(String::as_str)
            .find(|model| *model == name)
    }
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
    let kind = kind(&raw.kind)?;
    let upstreams = upstreams(raw, kind)?;
    let (models, default_model) = models(raw, kind)?;
    for (alias, model) in &raw.aliases {
        if !models.contains(model) || models.contains(alias) || !is_model(alias) {
            return Err(ConfigError::value(
                "providers.aliases",
                format!("{alias} = {model}"),
                "an alias is a new name for one of providers.models",
                format!("a name for one of: {}", models.join(", ")),
            ));
        }
    }
    let addresses = match raw.addresses.as_deref() {
        None | Some("public") => Addresses::Public,
        Some("private_network_too") => Addresses::PrivateNetworkToo,
        Some(other) => {
            return Err(ConfigError::value(
                "providers.addresses",
                other,
                "there is no such choice",
                "public, or private_network_too for a model server of your own",
            ));
        }
    };
    if let Some(file) = &raw.ca_file {
        existing_file("providers.ca_file", file)?;
    }
    let limits = Rates::build("providers.limits", &raw.limits)?;
    // As many as may be open at all, so that none of them waits for a bound nobody has set.
    let concurrent = limits
        .concurrent
        .and_then(|most| usize::try_from(most).ok());
    let connections = raw
        .connections
        .unwrap_or_else(|| concurrent.unwrap_or_default().max(CONNECTIONS));
    let prices = prices(raw, &models)?;
    Ok(Provider {
        name: raw.name.clone(),
        kind,
        upstreams,
        models,
        default_model,
        aliases: raw.aliases.clone(),
        prices,
        paths: paths(&raw.paths)?,
        query: query(&raw.query)?,
        routing: routing(raw.routing.as_deref())?,
        headers_up: passed(
            "headers_up",
            &raw.headers_up,
            raw.only_headers_up.as_deref(),
        )?,
        headers_down: passed(
            "headers_down",
            &raw.headers_down,
            raw.only_headers_down.as_deref(),
        )?,
        addresses,
        ca_file: raw.ca_file.clone(),
        timeouts: timeouts(raw)?,
        retries: within("providers.retries", raw.retries.unwrap_or(2), 0, 10)?,
        fallback: raw.fallback.clone(),
        connections: within("providers.connections", connections, 1, 100_000)?,
        limits,
    })
}

fn kind(text: &str) -> Result<ProviderKind, ConfigError> {
    let kinds = [
        ProviderKind::OpenAi,
        ProviderKind::Anthropic,
        ProviderKind::Gemini,
        ProviderKind::Bedrock,
        ProviderKind::Demo,
    ];
    kinds
        .into_iter()
        .find(|kind| kind.as_str() == text)
        .ok_or_else(|| {
            ConfigError::value(
                "providers.kind",
                text,
                "there is no such kind",
                "openai (which vLLM and Ollama speak too), anthropic, gemini, bedrock or demo",
            )
        })
}

fn upstreams(raw: &RawProvider, kind: ProviderKind) -> Result<Vec<ProviderUpstream>, ConfigError> {
    if kind == ProviderKind::Demo {
        return Ok(Vec::new());
    }
    let mut all = raw.upstreams.clone();
    match &raw.base_url {
        Some(base_url) if all.is_empty() => all.push(RawUpstream {
            base_url: base_url.clone(),
            key_file: raw.key_file.clone(),
            weight: None,
        }),
        None if !all.is_empty() => {}
        _ => {
            return Err(ConfigError::value(
                "providers.base_url",
                raw.base_url.as_deref().unwrap_or_default(),
                format!("the provider {} needs either it or upstreams", raw.name),
                "a URL such as https://api.openai.com/v1 or https://api.anthropic.com",
            ));
        }
    }
    within("providers.upstreams", all.len(), 1, MAX_UPSTREAMS)?;
    all.iter()
        .map(|upstream| {
            if let Some(file) = &upstream.key_file {
                existing_file("providers.key_file", file)?;
            }
            Ok(ProviderUpstream {
                base_url: base_url(&upstream.base_url)?,
                key_file: upstream.key_file.clone(),
                weight: within(
                    "providers.upstreams.weight",
                    upstream.weight.unwrap_or(1),
                    1,
                    1000,
                )?,
            })
        })
        .collect()
}

fn models(raw: &RawProvider, kind: ProviderKind) -> Result<(Vec<String>, String), ConfigError> {
    let models = if raw.models.is_empty() && kind == ProviderKind::Demo {
        vec![DEMO_MODEL.to_owned()]
    } else {
        raw.models.clone()
    };
    if let Some(bad) = models.iter().find(|model| !is_model(model)) {
        return Err(ConfigError::value(
            "providers.models",
            bad,
            "it is no name of a model",
            format!("1 to {} visible characters", gateway::provider::MAX_MODEL),
        ));
    }
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
    Ok((models, default_model))
}

fn is_model(name: &str) -> bool {
    (1..=gateway::provider::MAX_MODEL).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic())
}

fn prices(raw: &RawProvider, models: &[String]) -> Result<BTreeMap<String, Price>, ConfigError> {
    raw.prices
        .iter()
        .map(|(model, price)| {
            let key = "providers.prices";
            if !models.contains(model) {
                return Err(ConfigError::value(
                    key,
                    model,
                    "it is the price of no model of this provider",
                    format!("prices for: {}", models.join(", ")),
                ));
            }
            let dollars = |name, value| nano_dollars(&format!("{key}.{model}.{name}"), value);
            let or = |name, value: Option<f64>, absent| {
                value.map_or(Ok(absent), |value| dollars(name, value))
            };
            let input = dollars("input", price.input)?;
            // What Anthropic asks for it, and Amazon after it: a budget is not to count too little.
            let cache_write = or("cache_write", price.cache_write, input + input / 4)?;
            let long = cache_write.max(2 * input);
            let price = Price {
                input,
                output: dollars("output", price.output)?,
                cached_input: or("cached_input", price.cached_input, input)?,
                cache_write,
                cache_write_1h: or("cache_write_1h", price.cache_write_1h, long)?,
                call: price.call.map(|call| dollars("call", call)).transpose()?,
            };
            Ok((model.clone(), price))
        })
        .collect()
}

fn paths(raw: &[RawPath]) -> Result<Vec<ProviderPath>, ConfigError> {
    raw.iter()
        .map(|raw| match raw {
            RawPath::Plain(text) => path(text, None),
            RawPath::Table(table) => path(&table.path, table.model.as_deref()),
        })
        .collect()
}

fn path(text: &str, model: Option<&str>) -> Result<ProviderPath, ConfigError> {
    let (method, pattern) = match text.split_once(' ') {
        Some((method, pattern)) => (Some(method), pattern),
        None => (None, text),
    };
    let known = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
    ];
    let method = method.map(|name| known.into_iter().find(|method| method.as_str() == name));
    let plain = pattern
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-._/:*".contains(&b));
    let segments_ok = pattern
        .split('/')
        .all(|segment| !matches!(segment, "" | "." | ".."));
    if !plain || !segments_ok || method == Some(None) {
        return Err(ConfigError::value(
            "providers.paths",
            text,
            "it is no path below the base URL",
            "segments without a leading slash, such as GET files/*; without a method GET and POST",
        ));
    }
    let model = match model {
        None | Some("named") => ModelCheck::Named,
        Some("unchecked") => ModelCheck::Unchecked,
        Some(other) => {
            return Err(ConfigError::value(
                "providers.paths.model",
                other,
                "there is no such choice",
                "named, or unchecked for uploads and forms, which are held to no model and no price",
            ));
        }
    };
    Ok(ProviderPath {
        method: method.flatten(),
        pattern: pattern.to_owned(),
        model,
    })
}

fn query(raw: &[String]) -> Result<Vec<String>, ConfigError> {
    let never = |name: &str| {
        let name = name.to_ascii_lowercase();
        NEVER_ASKED.contains(&name.as_str())
            || NEVER_ASKED_FROM.iter().any(|from| name.starts_with(from))
    };
    let plain = |name: &str| {
        !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._$[]".contains(&b))
    };
    match raw.iter().find(|name| never(name) || !plain(name)) {
        None => Ok(raw.to_vec()),
        Some(bad) => Err(ConfigError::value(
            "providers.query",
            bad,
            "it is no parameter's name, or one that never goes up",
            "a parameter such as expand; credentials never go up",
        )),
    }
}

fn routing(text: Option<&str>) -> Result<Routing, ConfigError> {
    match text {
        None | Some("refused") => Ok(Routing::Refused),
        Some("past_the_model_list") => Ok(Routing::PastTheModelList),
        Some(other) => Err(ConfigError::value(
            "providers.routing",
            other,
            "there is no such choice",
            "refused, or past_the_model_list, with which callers reach models without a price",
        )),
    }
}

fn passed(
    name: &str,
    also: &[String],
    only: Option<&[String]>,
) -> Result<PassedHeaders, ConfigError> {
    let instead = format!("providers.only_{name}");
    match only {
        Some(only) if also.is_empty() => headers(&instead, only).map(PassedHeaders::OnlyThese),
        Some(only) => Err(ConfigError::value(
            instead,
            only.join(", "),
            format!("{name} adds to the headers of the kind, and this replaces them"),
            "one of the two",
        )),
        None => headers(&format!("providers.{name}"), also).map(PassedHeaders::AndThese),
    }
}

fn headers(key: &str, raw: &[String]) -> Result<Vec<HeaderName>, ConfigError> {
    raw.iter()
        .map(|text| {
            let name: Option<HeaderName> = text.to_ascii_lowercase().parse().ok();
            name.filter(|name| {
                let name = name.as_str();
                !NEVER.contains(&name) && !NEVER_FROM.iter().any(|from| name.starts_with(from))
            })
            .ok_or_else(|| {
                ConfigError::value(
                    key,
                    text,
                    "it is no header's name, or one that never passes",
                    "a header such as x-request-tag; credentials, cookies and framing never pass",
                )
            })
        })
        .collect()
}

fn timeouts(raw: &RawProvider) -> Result<Timeouts, ConfigError> {
    let seconds = Duration::from_secs;
    Ok(Timeouts {
        connect: duration(
            "providers.connect_timeout",
            raw.connect_timeout.as_deref(),
            seconds(10),
        )?,
        first_byte: duration(
            "providers.first_byte_timeout",
            raw.first_byte_timeout.as_deref(),
            seconds(300),
        )?,
        idle: duration(
            "providers.idle_timeout",
            raw.idle_timeout.as_deref(),
            seconds(300),
        )?,
        whole: raw
            .whole_timeout
            .as_deref()
            .map(|text| duration("providers.whole_timeout", Some(text), Duration::ZERO))
            .transpose()?,
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
