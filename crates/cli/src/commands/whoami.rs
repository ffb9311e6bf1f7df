//! `choir whoami`.

use super::{Me, Target};
use crate::Error;
use crate::context::Context;
use crate::output;

pub(super) async fn run(target: &Target, json: bool, context: &mut Context) -> Result<u8, Error> {
    let client = target.client(context)?;
    let me: Me = client.get("/auth/me").await?;
    let text = if json {
        output::json(&me)
    } else {
        let admin = if me.is_admin { ", an admin" } else { "" };
        format!("{}{admin} on {}\n", me.name, client.server())
    };
    context.io.print(&text)?;
    Ok(0)
}
