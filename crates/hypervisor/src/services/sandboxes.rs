//! Sandboxes: lifecycle, routes, swap.

use std::sync::Arc;

use crate::app::App;
use crate::config::Config;

/// The sandboxes of this hypervisor.
#[derive(Debug)]
pub struct Sandboxes {}

impl Sandboxes {
    /// Composes the service; nothing runs yet.
    #[must_use]
    pub const fn new(_config: &Config) -> Self {
        Self {}
    }
}

/// Takes over what outlived an earlier hypervisor and begins to serve channels.
pub async fn start(_app: &Arc<App>) {}
