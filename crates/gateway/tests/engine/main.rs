//! The engine over real sockets, against apps and clients that misbehave.

// `cfg(test)` is what tells clippy that these modules may unwrap.
#[cfg(test)]
mod bed;
#[cfg(test)]
mod exchanges;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod provider;
#[cfg(test)]
mod sockets;
#[cfg(test)]
mod starts;
#[cfg(test)]
mod websockets;
