//! Prepares a Linux host as an LVS-TUN real server: a device that unwraps what a director sends, the
//! VIP on it without answering ARP for it, no reverse-path filter in the way, and a TCP segment
//! size that leaves room for the outer header.
//!
//! [`plan`] is pure: what is wanted and seen goes in, ordered steps come out. [`effects`] is the
//! only module that looks at the host and changes it.

pub mod effects;
pub mod plan;
