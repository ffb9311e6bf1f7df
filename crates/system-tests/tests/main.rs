//! The whole system, driven from outside.

mod crossing;
mod origins;
mod paths;
mod routes;
mod walls;
