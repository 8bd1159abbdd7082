//! Which engine this kernel can run: found out by doing it, not by version number.

use std::fmt;
use std::ops::Range;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};

use super::egress::{EgressControl, EgressTarget, OpenEgress};
use super::engine::{Engine, EngineConfig};
use super::engine_error::EngineError;
use super::handler::{Disposition, Handler, IoCounters, Source};
use super::slots::AuxSlots;
use super::tap::Tap;
use super::wake::Waker;

/// How frames are received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// READ_MULTISHOT into a buffer ring (Linux 6.7; reliable on a TAP from 6.12).
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
        IoPreference::Multishot => match probe_multishot(tap)? {
            Ok(()) => Ok(choice(EngineKind::Multishot, "configured; probed on the TAP")),
            Err(obstacle) => Err(EngineError::NoMultishot(obstacle)),
        },
        IoPreference::Auto => Ok(match probe_multishot(tap)? {
            Ok(()) => choice(EngineKind::Multishot, "probed on the TAP"),
            Err(obstacle) => choice(EngineKind::Poll, &format!("multishot: {obstacle}")),
        }),
    }
}

/// `Ok(Err(_))` is an obstacle to multishot; `Err(_)` one to every engine.
fn probe_multishot(tap: &Tap) -> Result<Result<(), String>, EngineError> {
    let waker = Waker::new().map_err(|errno| EngineError::Ring { action: "eventfd", errno })?;
    let config =
        EngineConfig { slots: 16, aux_slots: 0, ..EngineConfig::new(EngineKind::Multishot, waker) };
    let mut engine = match Engine::build(tap, config) {
        Ok(engine) => engine,
        Err(EngineError::NoMultishot(obstacle)) => return Ok(Err(obstacle)),
        Err(error) => return Err(error),
    };
    let entry = match OpenEgress::open(&EgressTarget::Direct { interface: tap.index() }) {
        Ok(entry) => entry,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let mut probe =
        Probe { entry, frame: probe_frame(tap), sent: 0, received: 0, deadline: 0, over: false };
    if let Err(errno) = probe.send_next() {
        return Ok(Err(format!("sending into the TAP: {errno}")));
    }
    match engine.run(&mut probe) {
        Ok(_) if probe.received == PROBE_FRAMES => Ok(Ok(())),
        Ok(_) => {
            Ok(Err(format!("frames stay in the TAP for over {} ms", PROBE_TIME_NS / 1_000_000)))
        }
        Err(EngineError::TapGone(errno)) => Ok(Err(format!("READ_MULTISHOT: {errno}"))),
        Err(EngineError::Corrupt(what)) => Ok(Err(format!("READ_MULTISHOT: {what}"))),
        Err(error) => Err(error),
    }
}

fn probe_frame(tap: &Tap) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..6].copy_from_slice(&tap.peer_mac());
    frame[6..12].copy_from_slice(&tap.mac());
    frame[12..14].copy_from_slice(&PROBE_ETHERTYPE);
    frame
}

struct Probe {
    entry: OpenEgress,
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
