//! The guest runtime as its neighbours see it: over its app socket and its channel.
//! The modules say `cfg(test)` because that is how clippy knows a test's helpers.

#[cfg(test)]
mod agent;
#[cfg(test)]
mod binary;
#[cfg(test)]
mod double;
#[cfg(test)]
mod events;
#[cfg(test)]
mod files;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod jobs;
#[cfg(test)]
mod resume;
#[cfg(test)]
mod terminals;
#[cfg(test)]
mod wire;
