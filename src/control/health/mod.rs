//! Health checks: whether real servers can serve, found out by connections to the VIP that go the way
//! of a client's packets, through the tunnel.
//!
//! [`target`] is what is known of one real server of one service, [`board`] all of them and when each
//! is due, [`blocks`] which source ports are whose, [`pins`] what
//! the core is told of that: all pure, time is an argument. [`connect`] is the
//! check itself, and [`exchange`] what an operator tries on demand, the only parts with a socket. The
//! daemon joins them (`daemon/checks.rs`, `daemon/probe.rs`).
//!
//! What they find acts on new flows only: placement and connections stay as they are.

pub mod blocks;
pub mod board;
pub mod connect;
pub mod exchange;
pub mod pins;
pub mod serving;
pub mod target;

pub use board::{Board, TargetKey};
pub use pins::pin;
pub use serving::without_server;
