//! Everything that is not per packet: configuration, the host's routes and firewall, reload,
//! the admin socket. What it decides reaches the data plane as one immutable snapshot.

pub mod admin;
pub mod announcement;
pub mod build;
pub mod config;
pub mod cores;
pub mod daemon;
pub mod destinations;
pub mod diff;
pub mod drains;
pub mod egress_paths;
pub mod explain;
pub mod finding;
pub mod firewall;
pub mod flow_region;
pub mod health;
pub mod host;
pub mod import;
pub mod making_room;
pub mod metrics;
pub mod netlink;
pub mod runtime;
pub mod tables;

#[cfg(test)]
mod testing;
