//! What models there are, as each API tells it: those of the table and no others. A provider
//! itself would tell of everything that its account has.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::answer::CallError;
use super::paths;
use crate::clock::rfc3339;
use crate::config::{Provider, ProviderKind};

/// Answers a provider's own listing, or with a name, still percent-encoded, what one model is.
pub(super) fn answer(provider: &Provider, name: Option<&str>) -> Result<Response, CallError> {
    let all = || provider.models.iter().chain(provider.aliases.keys());
    let Some(name) = name else {
        let data = all()
            .map(|id| one(provider.kind, &provider.name, id))
            .collect();
        return Ok(Json(list(provider.kind, data)).into_response());
    };
    let name = paths::decoded(name).ok_or(CallError::NoModel)?;
    match all().find(|id| **id == name) {
        Some(id) => Ok(Json(one(provider.kind, &provider.name, id)).into_response()),
        None => Err(CallError::Model {
            offered: provider.models.join(", "),
            model: name,
        }),
    }
}

/// One model.
pub(super) fn one(kind: ProviderKind, provider: &str, id: &str) -> Value {
    match kind {
        ProviderKind::Anthropic => {
            json!({"type": "model", "id": id, "display_name": id, "created_at": rfc3339(0)})
        }
        ProviderKind::Gemini => {
            json!({"name": format!("models/{id}"), "displayName": id,
                   "supportedGenerationMethods": ["generateContent", "countTokens"]})
        }
        _ => json!({"id": id, "object": "model", "created": 0, "owned_by": provider}),
    }
}

/// All of them.
pub(super) fn list(kind: ProviderKind, data: Vec<Value>) -> Value {
    match kind {
        ProviderKind::Anthropic => {
            let end = |model: Option<&Value>| model.and_then(|model| model.get("id")).cloned();
            json!({"first_id": end(data.first()), "last_id": end(data.last()),
                   "has_more": false, "data": data})
        }
        ProviderKind::Gemini => json!({"models": data}),
        _ => json!({"object": "list", "data": data}),
    }
}
