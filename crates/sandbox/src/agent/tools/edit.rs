//! `write_file`, `patch_file`.

use serde::Deserialize;
use serde_json::json;

use super::files::explain;
use super::patch::{PatchError, apply, replace_once};
use super::{Answer, Tools, relative};
use crate::files::{FileError, Precondition};
use crate::store::NewEvent;

/// Largest file that is patched.
const MAX_PATCHED: u64 = 4 * 1024 * 1024;

#[derive(Deserialize)]
pub(super) struct WriteFile {
    path: String,
    content: String,
}

#[derive(Deserialize)]
pub(super) struct PatchFile {
    path: String,
    old: Option<String>,
    new: Option<String>,
    patch: Option<String>,
}

impl Tools {
    pub(super) async fn write_file(&self, arguments: WriteFile) -> Result<Answer, String> {
        let path = relative(&arguments.path).to_owned();
        let size = arguments.content.len();
        let target = path.clone();
        let written = self
            .blocking(move |workspace| {
                workspace.create_above(&target)?;
                workspace.write(&target, arguments.content.as_bytes(), &Precondition::None)
            })
            .await
            .map_err(|error| explain(&arguments.path, &error))?;
        let operation = if written.created {
            "created"
        } else {
            "written"
        };
        self.changed(&path, operation).await?;
        Ok(Answer::good(format!("{operation} {path} ({size} bytes)")))
    }

    pub(super) async fn patch_file(&self, arguments: PatchFile) -> Result<Answer, String> {
        let path = relative(&arguments.path).to_owned();
        let target = path.clone();
        let (old, new, patch) = (arguments.old, arguments.new, arguments.patch);
        let change = move |text: &str| match (old, new, patch) {
            (Some(old), new, None) => replace_once(text, &old, &new.unwrap_or_default()),
            (None, None, Some(patch)) => apply(text, &patch),
            _ => Err(PatchError::Arguments),
        };
        let result = self
            .blocking(move |workspace| {
                let (bytes, etag) = workspace.read(&target, MAX_PATCHED)?;
                let Ok(text) = String::from_utf8(bytes) else {
                    return Err(FileError::Kind("not text (UTF-8)"));
                };
                let changed = match change(&text) {
                    Ok(changed) => changed,
                    Err(error) => return Ok(Err(error)),
                };
                // Not over what somebody else wrote in between.
                workspace.write(&target, changed.as_bytes(), &Precondition::Version(etag))?;
                Ok(Ok(()))
            })
            .await;
        match result {
            Ok(Ok(())) => {
                self.changed(&path, "written").await?;
                Ok(Answer::good(format!("changed {path}")))
            }
            Ok(Err(error)) => Err(format!("{path} was not changed: {error}")),
            Err(error) => Err(explain(&arguments.path, &error)),
        }
    }

    async fn changed(&self, path: &str, operation: &str) -> Result<(), String> {
        let data = json!({"path": path, "op": operation});
        self.store
            .append(NewEvent::of_run(self.run_id, "file.changed", data))
            .await
            .map(drop)
            .map_err(|error| format!("the change was made and could not be recorded: {error}"))
    }
}
