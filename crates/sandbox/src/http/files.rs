//! The files API. Paths are relative to the workspace.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{
    CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;
use utoipa::{IntoParams, ToSchema};

use super::problem::{ApiError, JsonBody, Params, body};
use crate::app::{App, blocking};
use crate::files::{Entry, FileError, MAX_CONTENT, Precondition};
use crate::store::NewEvent;

/// Bytes of a file that are read at once.
const READ_BUFFER: usize = 64 * 1024;
/// How long a file's content may take to arrive.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// Which file or directory.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PathQuery {
    /// Path relative to the workspace; empty for the workspace itself.
    #[serde(default)]
    pub path: String,
}

/// A directory.
#[derive(Debug, Serialize, ToSchema)]
pub struct Listing {
    /// The path that was asked for.
    pub path: String,
    /// Its entries, directories first.
    pub entries: Vec<Entry>,
    /// There are more entries than are listed (10,000).
    pub truncated: bool,
}

/// A directory to create; those above it that are missing are created too.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDirectory {
    /// Path relative to the workspace.
    pub path: String,
}

/// Something to rename.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// The present path.
    pub from: String,
    /// The new path; nothing may be there.
    pub to: String,
}

/// What a change answers.
#[derive(Debug, Serialize, ToSchema)]
pub struct Changed {
    /// The path that was changed.
    pub path: String,
    /// The entity tag of a file's new version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

/// The entries of a directory.
#[utoipa::path(
    get, operation_id = "listFiles", path = "/api/files", tag = "files", params(PathQuery),
    responses((status = 200, body = Listing), (status = 404, body = super::ProblemSchema)),
)]
pub async fn list(
    State(app): State<App>,
    Params(PathQuery { path }): Params<PathQuery>,
) -> Result<Json<Listing>, ApiError> {
    let workspace = app.workspace.clone();
    let listed = path.clone();
    let (entries, truncated) =
        blocking(&app.file_operations, move || workspace.list(&listed)).await?;
    Ok(Json(Listing {
        path,
        entries,
        truncated,
    }))
}

/// A file's content, at most 16 MiB.
#[utoipa::path(
    get, operation_id = "readFile", path = "/api/files/content", tag = "files", params(PathQuery),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream",
         headers(("ETag" = String, description = "This version"))),
        (status = 304, description = "The version of `If-None-Match` is current"),
        (status = 404, body = super::ProblemSchema),
        (status = 413, body = super::ProblemSchema),
    ),
)]
pub async fn read(
    State(app): State<App>,
    Params(PathQuery { path }): Params<PathQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let workspace = app.workspace.clone();
    let opened = blocking(&app.file_operations, move || {
        workspace.open_file(&path, MAX_CONTENT)
    })
    .await?;
    let tag = HeaderValue::try_from(&opened.etag)
        .map_err(|_| ApiError::from(FileError::Path("it has no version")))?;
    if super::matches(&headers, &opened.etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response());
    }
    // Never a page of the runtime origin, whatever is in it.
    let kind = HeaderValue::from_static("application/octet-stream");
    let disposition = HeaderValue::from_static("attachment");
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_DISPOSITION, disposition),
        (CONTENT_LENGTH, HeaderValue::from(opened.size)),
        (ETAG, tag),
    ];
    // A file that shrinks meanwhile breaks the answer off, one that grows is cut.
    let content = tokio::fs::File::from_std(opened.file).take(opened.size);
    let body = Body::from_stream(ReaderStream::with_capacity(content, READ_BUFFER));
    Ok((headers, body).into_response())
}

/// Replaces a file's content atomically, or creates the file in an existing directory.
/// With `If-Match` only that version is replaced, with `If-None-Match: *` none is.
#[utoipa::path(
    put, operation_id = "writeFile", path = "/api/files/content", tag = "files",
    params(
        PathQuery,
        ("If-Match" = Option<String>, Header, description = "The version to replace"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: only create"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 200, body = Changed), (status = 201, body = Changed),
        (status = 409, body = super::ProblemSchema), (status = 412, body = super::ProblemSchema),
        (status = 413, body = super::ProblemSchema),
    ),
)]
pub async fn write(
    State(app): State<App>,
    Params(PathQuery { path }): Params<PathQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let precondition = precondition(request.headers())?;
    let _place = app.uploads.acquire().await;
    let content = tokio::time::timeout(UPLOAD_TIMEOUT, body(request, &()))
        .await
        .map_err(|_| ApiError::bad_request("the content took too long to arrive"))??;
    let workspace = app.workspace.clone();
    let target = path.clone();
    let written = blocking(&app.file_operations, move || {
        workspace.write(&target, &content, &precondition)
    })
    .await?;
    let operation = if written.created {
        "created"
    } else {
        "written"
    };
    changed(&app, &path, operation).await?;
    let status = if written.created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let tag = HeaderValue::try_from(&written.etag)
        .map_err(|_| ApiError::from(FileError::Path("it has no version")))?;
    let answer = Json(Changed {
        path,
        etag: Some(written.etag),
    });
    Ok((status, [(ETAG, tag)], answer).into_response())
}

/// Creates a directory.
#[utoipa::path(
    post, operation_id = "createDirectory", path = "/api/files/dir", tag = "files", request_body = NewDirectory,
    responses((status = 201, body = Changed), (status = 409, body = super::ProblemSchema)),
)]
pub async fn create_directory(
    State(app): State<App>,
    JsonBody(NewDirectory { path }): JsonBody<NewDirectory>,
) -> Result<Response, ApiError> {
    let workspace = app.workspace.clone();
    let target = path.clone();
    blocking(&app.file_operations, move || {
        workspace.create_directory(&target)
    })
    .await?;
    changed(&app, &path, "directory_created").await?;
    Ok((StatusCode::CREATED, Json(Changed { path, etag: None })).into_response())
}

/// Renames a file or directory; never replaces anything.
#[utoipa::path(
    post, operation_id = "moveFile", path = "/api/files/move", tag = "files", request_body = Move,
    responses(
        (status = 200, body = Changed), (status = 404, body = super::ProblemSchema),
        (status = 409, body = super::ProblemSchema),
    ),
)]
pub async fn rename(
    State(app): State<App>,
    JsonBody(Move { from, to }): JsonBody<Move>,
) -> Result<Json<Changed>, ApiError> {
    let workspace = app.workspace.clone();
    let names = (from.clone(), to.clone());
    blocking(&app.file_operations, move || {
        workspace.rename(&names.0, &names.1)
    })
    .await?;
    let data = json!({"path": to, "op": "moved", "from": from});
    app.store
        .append(NewEvent::new("file.changed", data))
        .await?;
    Ok(Json(Changed {
        path: to,
        etag: None,
    }))
}

/// Removes a file, a link, or a directory with all it holds.
#[utoipa::path(
    delete, operation_id = "removeFile", path = "/api/files", tag = "files", params(PathQuery),
    responses((status = 204), (status = 404, body = super::ProblemSchema)),
)]
pub async fn remove(
    State(app): State<App>,
    Params(PathQuery { path }): Params<PathQuery>,
) -> Result<StatusCode, ApiError> {
    let workspace = app.workspace.clone();
    let target = path.clone();
    blocking(&app.file_operations, move || workspace.remove(&target)).await?;
    changed(&app, &path, "removed").await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn changed(app: &App, path: &str, operation: &str) -> Result<(), ApiError> {
    let data = json!({"path": path, "op": operation});
    app.store
        .append(NewEvent::new("file.changed", data))
        .await?;
    Ok(())
}

fn precondition(headers: &HeaderMap) -> Result<Precondition, ApiError> {
    let text = |name| {
        headers
            .get(name)
            .map(|value: &HeaderValue| value.to_str().map(str::trim))
            .transpose()
            .map_err(|_| ApiError::bad_request("a precondition is not readable"))
    };
    match (text(IF_MATCH)?, text(IF_NONE_MATCH)?) {
        (None, None) => Ok(Precondition::None),
        (Some(version), None) => Ok(Precondition::Version(version.to_owned())),
        (None, Some("*")) => Ok(Precondition::Absent),
        _ => Err(ApiError::bad_request(
            "either If-Match, or If-None-Match with *, not both",
        )),
    }
}
