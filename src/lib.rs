//! Adit: an IP-in-IP tunnel-mode layer-4 load balancer on `io_uring`.
//!
//! The library behind the `adit` binary. [`dataplane`] is the pure core (frame and time in,
//! verdict out); see ARCHITECTURE.md for the way of a packet and the invariants.

#![forbid(unsafe_code)]

pub mod cli;
pub mod control;
pub mod dataplane;
#[cfg(test)]
mod testing;
pub mod worker;

pub use adit_io as io;
