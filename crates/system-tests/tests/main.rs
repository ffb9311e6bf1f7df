//! The whole system, driven from outside.

mod walls;
