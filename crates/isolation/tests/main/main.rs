//! Drives the real supervisor. On a machine without user namespaces these tests fail:
//! walls that were not tried are not walls.

// `cfg(test)` always holds here; it tells clippy that helpers are test code too.
#[cfg(test)]
mod control;
#[cfg(test)]
mod copies;
#[cfg(test)]
mod denials;
#[cfg(test)]
mod drills;
#[cfg(test)]
mod freezing;
#[cfg(test)]
mod guest;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod ports;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod runners;
#[cfg(test)]
mod separation;
