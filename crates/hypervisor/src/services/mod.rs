//! What the control plane does: each operation authorizes, acts and records (style 6).

pub mod audit;
pub mod sandboxes;
