//! The whole system, driven from outside.

mod accounts;
mod agent;
mod canary;
mod cli;
mod crossing;
mod keyless;
mod origins;
mod paths;
mod routes;
mod swap;
mod walls;
