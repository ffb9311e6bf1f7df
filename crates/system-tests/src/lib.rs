//! Drives the real binaries: what the integration tests, the escape drills and the
//! measurements share.
//!
//! Nothing here looks inside a process: an [`Installation`] is a hypervisor with a data
//! directory of its own, spoken to over its sockets as a browser, a CLI or an attacker would.

pub mod account;
pub mod binaries;
pub mod browser;
pub mod certificates;
pub mod channel;
pub mod closed_network;
pub mod http;
pub mod identity;
pub mod installation;
pub mod load;
pub mod passkey;
pub mod processes;
pub mod provider;
pub mod wait;
pub mod walls;

pub use account::Account;
pub use binaries::Binaries;
pub use http::{Client, Response};
pub use identity::Identity;
pub use installation::{Installation, Setup};
pub use provider::Provider;
