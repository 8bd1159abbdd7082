//! Prepares a Linux host as an LVS-TUN real server: devices that unwrap what directors send, the
//! VIPs without answering ARP for them, no reverse-path filter in the way, tunnelled packets from
//! directors alone, and TCP segments that leave room for the outer header.
//!
//! What is wanted ([`desired`]) and what is there ([`observed`]) are data; [`plan`] is their pure
//! difference, and [`verify`] says what is wrong. [`host`] is the only module that looks at the
//! host and changes it; [`live`] listens to what a director sends.

pub mod config;
pub mod decap;
pub mod desired;
pub mod firewall;
pub mod host;
pub mod kernel;
pub mod live;
pub mod memory;
#[cfg(test)]
mod model;
pub mod networkd;
pub mod observed;
pub mod plan;
pub mod step;
pub mod verify;
mod wanted;
