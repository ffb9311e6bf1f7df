//! What the control plane does: each operation authorizes, acts and records (style 6).

pub mod accounts;
mod argon;
pub mod audit;
pub mod auth;
pub(crate) mod authorize;
pub mod ceremonies;
pub(crate) mod commands;
pub(crate) mod egress;
pub mod handover;
pub(crate) mod health;
pub mod invites;
pub mod pairing;
pub mod passkeys;
pub(crate) mod ports;
pub mod provider;
pub mod rate;
pub mod recovery;
pub mod sandboxes;
pub mod sessions;
pub mod tokens;
pub mod usage;
