//! Bytes and slots: the ring, buffers, devices and sockets of a worker.
//!
//! Architecture invariant: this crate knows nothing of services, flows or tunnels. It moves frames
//! between slots and file descriptors and hands them to a [`Handler`]; what a frame means is decided
//! elsewhere. Every `unsafe` line of the director and of the real server's decapsulator is in it.
//!
//! The way through: [`Tap::open`] makes the device, [`choose`] finds out what the kernel can do,
//! [`Engine::build`] allocates everything, [`Engine::run`] drives a handler on the calling thread
//! until it asks to stop or the device is gone. A real server's engine takes packets from
//! [`TunnelSocket`]s instead, and writes to a [`Tun`] ([`Engine::between`]).

// Memory shared with the kernel, mappings and raw system calls need it; each block says which
// invariant holds.
#![allow(unsafe_code)]
// Errno has 130 variants; a match on it names those that need something else than the rest.
#![allow(clippy::wildcard_enum_match_arm)]

mod buffer_ring;
pub mod clock;
mod egress;
#[cfg(test)]
mod egress_tests;
mod engine;
mod engine_error;
#[cfg(test)]
mod engine_tests;
mod errno;
mod exchange;
mod handler;
mod input;
mod interface;
mod mapping;
mod multishot;
mod packet_socket;
#[cfg(test)]
mod packet_socket_tests;
mod poll;
mod privileges;
mod probe;
mod region;
mod ring;
mod slots;
mod steering;
mod tap;
#[cfg(test)]
mod testing;
mod tun;
mod tunnel_socket;
#[cfg(test)]
mod tunnel_socket_tests;
mod wake;

pub use egress::{EgressControl, EgressError, EgressId, EgressTarget, MAX_EGRESS, OpenEgress};
pub use engine::{Engine, EngineConfig};
pub use engine_error::EngineError;
pub use handler::{Disposition, Handler, IoCounters, Source, TICK};
pub use interface::{InterfaceError, interface_index, interface_mtu};
pub use nix::errno::Errno;
pub use packet_socket::{JoinedGroups, NeighbourSockets, OuterErrorSockets, PacketSocketError};
pub use privileges::give_up_capabilities;
pub use probe::{Choice, EngineKind, IoPreference, choose, choose_for_tunnels};
pub use region::{Placement, Region, RegionError, StateDirectory};
pub use slots::{AuxSlot, AuxSlots, HEADROOM};
pub use steering::{SteeringError, SteeringProgram, SteeringRule};
pub use tap::{Tap, TapConfig, TapError};
pub use tun::{OffloadHeader, Presence, Tun};
pub use tunnel_socket::{Losses, OuterVersion, TunnelSocket, TunnelSocketError};
pub use wake::{Waker, pin_current_thread};
