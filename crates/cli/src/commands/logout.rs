//! `choir logout`: revokes this machine's token and forgets it.

use super::{Me, Target};
use crate::Error;
use crate::client::Client;
use crate::context::Context;
use crate::credentials::Credentials;

pub(super) async fn run(target: &Target, context: &mut Context) -> Result<u8, Error> {
    let mut credentials = Credentials::load(context.config_dir.as_deref())?;
    let server = target.server(Some(&credentials))?;
    let Some(credential) = credentials.get(&server) else {
        return Err(Error::SignedOut(server));
    };
    let revoked = revoke(&Client::new(server.clone(), Some(&credential.token()?))?).await;
    // Forgotten here in any case: whoever signs out means this machine first of all.
    credentials.remove(&server)?;
    let text = match revoked {
        Ok(true) | Err(Error::TokenRefused(_)) => format!("Signed out of {server}.\n"),
        Ok(false) | Err(_) => format!(
            "Forgot the token for {server}, and could not revoke it there.\n\
             hint: revoke it in the console, under tokens\n"
        ),
    };
    context.io.complain(&text)?;
    Ok(match revoked {
        Ok(true) | Err(Error::TokenRefused(_)) => 0,
        Ok(false) | Err(_) => 1,
    })
}

/// Whether the server was able to tell which token this is, and revoked it.
async fn revoke(client: &Client) -> Result<bool, Error> {
    let me: Me = client.get("/auth/me").await?;
    let Some(id) = me.token_id else {
        return Ok(false);
    };
    client.delete(&format!("/me/tokens/{id}")).await?;
    Ok(true)
}
