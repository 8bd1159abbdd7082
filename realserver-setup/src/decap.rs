//! Unwrapping in userspace, for kernels and containers without `ipip`: raw sockets in, a TUN device
//! out.
//!
//! [`rules`] decides, and is pure; [`service`] joins it to the packet loop that the director has too.

pub mod rules;
pub mod service;
pub mod tally;
