//! The pure core: a frame and the time go in, a [`verdict::Verdict`] comes out.
//!
//! Architecture invariants: nothing in here does I/O, reads a clock, draws randomness or
//! allocates after construction, and nothing in here imports `crate::io` or `crate::control`.

pub mod admission;
pub mod conntrack;
pub mod counters;
pub mod director;
pub mod fragments;
pub mod hash;
pub mod icmp;
pub mod ids;
pub mod neighbour;
pub mod packet;
pub mod path_mtu;
pub mod persistence;
pub mod probe;
mod queues;
pub mod rate_limit;
pub mod region;
pub mod reply;
#[cfg(test)]
mod sample_packets;
pub mod scheduler;
pub mod service;
mod slot_index;
pub mod snapshot;
pub mod spread;
pub mod steering;
pub mod time;
pub mod verdict;
pub mod vip_prefix;
