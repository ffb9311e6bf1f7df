//! The whole system, driven from outside.

mod accounts;
mod agent;
mod bombs;
mod canary;
mod cli;
mod commands;
mod crossing;
mod doctor;
mod drain;
mod idle;
mod keyless;
mod lifecycle;
mod network;
mod origins;
mod paths;
mod podman;
mod ports;
mod requests;
mod resume;
mod routes;
mod snapshots;
mod survival;
mod swap;
mod swap_load;
mod threats;
mod walls;
