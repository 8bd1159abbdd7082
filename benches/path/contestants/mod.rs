//! The directors that are compared. Each runs as a process of its own, pinned to the first core: so
//! none shares descriptors, page tables or an allocator with the generator.

pub mod director;
mod engine;
mod plain;
mod tokio_uring;

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use adit::io::{EgressTarget, EngineKind, OpenEgress, Tap, interface_index};
use anyhow::Result;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::{prctl::set_pdeathsig, signal::Signal};

use crate::topology::{REAL, Topology};
use crate::wrap::Exit;
use director::Load;

/// A director that only wraps, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Contestant {
    /// A loop of read(2) and send(2).
    Plain(Exit),
    /// tokio-uring, with so many tasks that each read and then send.
    TokioUring(Exit, usize),
    /// Adit's engine with a handler that only wraps.
    Engine(EngineKind, Exit),
    /// All of Adit: `adit run`, which chooses direct egress here.
    Director(EngineKind, Load),
}

impl Contestant {
    pub const ALL: [Self; 20] = [
        Self::Plain(Exit::Packet),
        Self::Plain(Exit::Raw),
        Self::TokioUring(Exit::Raw, 1),
        Self::TokioUring(Exit::Raw, 4),
        Self::TokioUring(Exit::Raw, 16),
        Self::TokioUring(Exit::Raw, 64),
        Self::TokioUring(Exit::Packet, 1),
        Self::TokioUring(Exit::Packet, 4),
        Self::TokioUring(Exit::Packet, 16),
        Self::TokioUring(Exit::Packet, 64),
        Self::Engine(EngineKind::Multishot, Exit::Packet),
        Self::Engine(EngineKind::Poll, Exit::Packet),
        Self::Engine(EngineKind::Multishot, Exit::Raw),
        Self::Engine(EngineKind::Poll, Exit::Raw),
        Self::Director(EngineKind::Multishot, Load::Known),
        Self::Director(EngineKind::Multishot, Load::New),
        Self::Director(EngineKind::Multishot, Load::NewFull),
        Self::Director(EngineKind::Poll, Load::Known),
        Self::Director(EngineKind::Poll, Load::New),
        Self::Director(EngineKind::Poll, Load::NewFull),
    ];

    pub fn name(self) -> String {
        let exit = |exit| match exit {
            Exit::Packet => "packet",
            Exit::Raw => "raw",
        };
        match self {
            Self::Plain(way) => format!("plain-{}", exit(way)),
            Self::TokioUring(way, tasks) => format!("tokio-uring-{}-{tasks}", exit(way)),
            Self::Engine(kind, way) => format!("engine-{kind}-{}", exit(way)),
            Self::Director(kind, Load::Known) => format!("adit-{kind}-packet"),
            Self::Director(kind, Load::New) => format!("adit-{kind}-new"),
            Self::Director(kind, Load::NewFull) => format!("adit-{kind}-new-full"),
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|contestant| contestant.name() == name)
    }

    /// Whether its packets each begin a connection.
    pub fn takes_new_flows(self) -> bool {
        matches!(self, Self::Director(_, Load::New | Load::NewFull))
    }

    /// Runs in this process until it is killed.
    pub fn run(self) -> Result<()> {
        // It would run on for ever if the bench were killed.
        set_pdeathsig(Signal::SIGKILL)?;
        adit::io::pin_current_thread(crate::DIRECTOR_CORE)?;
        match self {
            Self::Plain(exit) => plain::run(&Topology::open_tap()?, exit),
            Self::TokioUring(exit, tasks) => tokio_uring::run(&Topology::open_tap()?, exit, tasks),
            Self::Engine(kind, exit) => engine::run(&Topology::open_tap()?, kind, exit),
            Self::Director(kind, load) => match director::run(kind, load)? {},
        }
    }
}

fn open_exit(exit: Exit) -> Result<OpenEgress> {
    let target = match exit {
        Exit::Packet => EgressTarget::Direct { interface: interface_index("out")? },
        Exit::Raw => EgressTarget::Kernel { destination: IpAddr::from(REAL), source: None },
    };
    Ok(OpenEgress::open(&target)?)
}

/// A blocking descriptor of the TAP, as the comparators want it.
fn blocking(fd: impl AsFd) -> Result<OwnedFd> {
    let fd = fd.as_fd().try_clone_to_owned()?;
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(fd)
}

fn blocking_tap(tap: &Tap) -> Result<OwnedFd> {
    blocking(tap)
}
