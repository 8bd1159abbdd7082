//! Networks of hosts for tests and the demo.
//!
//! See `tests/lab/README.md` for a guide with examples.

pub mod agent;
pub mod ansible;
pub mod binaries;
pub mod corpus;
pub mod director;
pub mod engine;
pub mod error;
pub mod host;
pub mod io;
pub mod ipsec;
pub mod junk;
pub mod machine;
pub mod namespace;
pub mod neighbour;
pub mod network;
pub mod packet;
pub mod postgres;
pub mod ptp;
pub mod realserver;
pub mod report;
pub mod root;
pub mod run;
pub mod serve;
pub mod skip;
pub mod sniffer;
pub mod soak;
pub mod systemd;
pub mod topology;
pub mod views;
pub mod wait;

pub use director::{Config, Director, Service};
pub use engine::Engine;
pub use error::{Context, LabError, Result};
pub use host::{Host, Process};
pub use machine::{Kind, Machine, MachineSpec};
pub use namespace::Namespace;
pub use network::Segment;
pub use postgres::Session;
pub use realserver::{RealServer, RealServerSpec, SERVE_PORT};
pub use report::report;
pub use run::Run;
pub use serve::{Caller, Conversation};
pub use sniffer::{Frame, RawSender, Sniffer};
pub use topology::{Lab, LabSpec};
pub use wait::{wait_for, wait_until};
