//! What the control plane does: each operation authorizes, acts and records (style 6).

pub mod audit;
pub mod auth;
pub mod ceremonies;
pub mod invites;
pub mod pairing;
pub mod passkeys;
pub mod rate;
pub mod recovery;
pub mod sandboxes;
pub mod sessions;
pub mod tokens;
