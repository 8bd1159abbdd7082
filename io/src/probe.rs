//! Which engine this kernel can run: found out by doing it, not by version number.

use std::fmt;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};

use super::egress::{EgressControl, EgressTarget, OpenEgress};
use super::engine::{Engine, EngineConfig};
use super::engine_error::EngineError;
use super::handler::{Disposition, Handler, IoCounters, Source};
use super::slots::AuxSlots;
use super::tap::Tap;
use super::tunnel_socket::TunnelSocket;
use super::wake::Waker;

/// How frames are received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// READ_MULTISHOT into a buffer ring (Linux 6.7; reliable on a TAP from 6.12). For tunnel sockets
    /// RECVMSG with multishot (Linux 6.0).
    Multishot,
    /// One-shot poll and non-blocking reads (Linux 5.15).
    Poll,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Multishot => "multishot",
            Self::Poll => "poll",
        })
    }
}

/// What the configuration asks for (`io = …`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoPreference {
    /// Multishot where it works, else poll.
    #[default]
    Auto,
    /// Multishot or an error.
    Multishot,
    /// Poll.
    Poll,
}

/// The engine to use, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Which.
    pub engine: EngineKind,
    /// For the log and for `adit list`.
    pub reason: String,
}

/// Frames that a probe sends through the TAP, one after the other: the first finds the read armed,
/// the others find it waiting again.
const PROBE_FRAMES: u8 = 3;

/// A probe's frames are there within microseconds where all is well. Kernels with the known defect
/// (liburing #1041) take seconds.
const PROBE_TIME_NS: u64 = 500_000_000;

/// Local experimental ethertype 1 (IEEE 802): nothing answers it.
const PROBE_ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// Chooses the engine. To be called before traffic is led to `tap`: for `Auto` and `Multishot` some
/// frames are sent through it and received by the very engine that would be used.
///
/// # Errors
/// No io_uring at all, or multishot asked for by name and not usable.
pub fn choose(preference: IoPreference, tap: &Tap) -> Result<Choice, EngineError> {
    let choice = |engine, reason: &str| Choice { engine, reason: reason.into() };
    match preference {
        IoPreference::Poll => Ok(choice(EngineKind::Poll, "configured")),
        IoPreference::Multishot => match probe_tap(tap)? {
            Ok(()) => Ok(choice(EngineKind::Multishot, "configured; probed on the TAP")),
            Err(obstacle) => Err(EngineError::NoMultishot(obstacle)),
        },
        IoPreference::Auto => Ok(match probe_tap(tap)? {
            Ok(()) => choice(EngineKind::Multishot, "probed on the TAP"),
            Err(obstacle) => choice(EngineKind::Poll, &format!("multishot: {obstacle}")),
        }),
    }
}

/// As [`choose`], for an engine of [tunnel sockets](super::TunnelSocket): some messages are received
/// from a socket of this process.
///
/// # Errors
/// As [`choose`].
pub fn choose_for_tunnels(preference: IoPreference) -> Result<Choice, EngineError> {
    let choice = |engine, reason: &str| Choice { engine, reason: reason.into() };
    match preference {
        IoPreference::Poll => Ok(choice(EngineKind::Poll, "configured")),
        IoPreference::Multishot => match probe_socket()? {
            Ok(()) => Ok(choice(EngineKind::Multishot, "configured; probed on a socket")),
            Err(obstacle) => Err(EngineError::NoMultishot(obstacle)),
        },
        IoPreference::Auto => Ok(match probe_socket()? {
            Ok(()) => choice(EngineKind::Multishot, "probed on a socket"),
            Err(obstacle) => choice(EngineKind::Poll, &format!("multishot: {obstacle}")),
        }),
    }
}

/// `Ok(Err(_))` is an obstacle to multishot; `Err(_)` one to every engine.
type Probed = Result<Result<(), String>, EngineError>;

fn probe_config() -> Result<EngineConfig, EngineError> {
    let waker = Waker::new().map_err(|errno| EngineError::Ring { action: "eventfd", errno })?;
    Ok(EngineConfig { slots: 16, aux_slots: 0, ..EngineConfig::new(EngineKind::Multishot, waker) })
}

fn probe_tap(tap: &Tap) -> Probed {
    let engine = Engine::build(tap, probe_config()?);
    let entry = match OpenEgress::open(&EgressTarget::Direct { interface: tap.index() }) {
        Ok(entry) => entry,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let mut frame = [0; 60];
    frame[..6].copy_from_slice(&tap.peer_mac());
    frame[6..12].copy_from_slice(&tap.mac());
    probe_multishot(engine, entry.into(), frame, "READ_MULTISHOT")
}

fn probe_socket() -> Probed {
    let kind = (AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC);
    let (entry, exit) = socketpair(kind.0, kind.1, None, kind.2)
        .map_err(|errno| EngineError::Ring { action: "socketpair", errno })?;
    let socket = TunnelSocket::of_datagrams(exit);
    let engine = Engine::of_sockets(vec![socket], None, 60, probe_config()?);
    probe_multishot(engine, entry, [0; 60], "RECVMSG with multishot")
}

/// Sends frames by `entry` and waits for them in the engine.
fn probe_multishot(
    engine: Result<Engine, EngineError>,
    entry: OwnedFd,
    mut frame: [u8; 60],
    operation: &str,
) -> Probed {
    let mut engine = match engine {
        Ok(engine) => engine,
        Err(EngineError::NoMultishot(obstacle)) => return Ok(Err(obstacle)),
        Err(error) => return Err(error),
    };
    frame[12..14].copy_from_slice(&PROBE_ETHERTYPE);
    let mut probe = Probe { entry, frame, sent: 0, received: 0, deadline: 0, over: false };
    if let Err(errno) = probe.send_next() {
        return Ok(Err(format!("sending a frame to oneself: {errno}")));
    }
    let time = PROBE_TIME_NS / 1_000_000;
    match engine.run(&mut probe) {
        Ok(_) if probe.received == PROBE_FRAMES => Ok(Ok(())),
        Ok(_) => Ok(Err(format!("{operation}: frames are not received for over {time} ms"))),
        Err(EngineError::TapGone(errno) | EngineError::SocketGone(errno)) => {
            Ok(Err(format!("{operation}: {errno}")))
        }
        Err(EngineError::Corrupt(what)) => Ok(Err(format!("{operation}: {what}"))),
        Err(error) => Err(error),
    }
}

struct Probe {
    entry: OwnedFd,
    frame: [u8; 60],
    sent: u8,
    received: u8,
    deadline: u64,
    over: bool,
}

impl Probe {
    fn send_next(&mut self) -> Result<(), Errno> {
        self.sent += 1;
        self.frame[14] = self.sent;
        send(self.entry.as_raw_fd(), &self.frame, MsgFlags::MSG_DONTWAIT).map(drop)
    }
}

impl Handler for Probe {
    fn batch(&mut self, now_ns: u64, _: &mut EgressControl<'_>) {
        if self.deadline == 0 {
            self.deadline = now_ns + PROBE_TIME_NS;
        }
        self.over |= now_ns > self.deadline;
    }

    fn frame(
        &mut self,
        _: Source,
        slot: &mut [u8],
        frame: Range<usize>,
        _: &mut AuxSlots,
    ) -> Disposition {
        // Other frames are the kernel's own (router solicitations and the like).
        if slot[frame].get(12..15) == Some(&[PROBE_ETHERTYPE[0], PROBE_ETHERTYPE[1], self.sent]) {
            self.received += 1;
            if self.received < PROBE_FRAMES {
                self.over |= self.send_next().is_err();
            }
        }
        Disposition::Release
    }

    fn sent(&mut self, _: u32, _: Result<(), Errno>) {}

    fn tick(&mut self, _: u64, _: &mut AuxSlots, _: &IoCounters) {}

    fn stop_requested(&self) -> bool {
        self.over || self.received == PROBE_FRAMES
    }
}
