//! The guest runtime: what runs inside a sandbox and serves the desktop, the app APIs,
//! the agent, the event store and memory (arch §1). It is untrusted by the host and holds
//! no secret but the gateway token of its own start.

pub mod agent;
pub mod app;
pub mod channel;
pub mod config;
pub mod desktop;
pub mod files;
pub mod home;
pub mod http;
pub mod memory;
pub mod relay;
pub mod serve;
pub mod store;
