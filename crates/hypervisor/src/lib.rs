//! The ChoirOS control plane: config, auth, services, HTTP (arch §8).

pub mod actor;
pub mod app;
pub mod clock;
pub mod config;
pub mod data_dir;
pub mod demo;
pub mod doctor;
pub mod error;
pub mod hardening;
pub mod http;
pub mod services;
pub mod store;
pub mod telemetry;
