//! `choir open`.

use types::Role;
use url::Url;

use super::{Sandboxes, Target};
use crate::Error;
use crate::context::Context;

pub(super) async fn run(
    target: &Target,
    role: Role,
    print: bool,
    context: &mut Context,
) -> Result<u8, Error> {
    let client = target.client(context)?;
    let listed: Sandboxes = client.get("/me/sandboxes").await?;
    let url = listed
        .sandboxes
        .into_iter()
        .find(|view| view.role == role)
        .ok_or_else(|| client.unexpected(format!("it lists no sandbox with the role {role}")))?
        .url;
    // It goes to the desktop's opener, which would also start other programs.
    let url = Url::parse(&url)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"))
        .ok_or_else(|| client.unexpected("an address that is none".to_owned()))?;
    context.io.print(&format!("{url}\n"))?;
    if !print && let Some(open) = &context.browser {
        open(&url);
    }
    Ok(0)
}
