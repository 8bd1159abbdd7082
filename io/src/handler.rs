//! What the engine asks of the worker: a handler of frames.

use std::ops::Range;
use std::time::Duration;

use nix::errno::Errno;

use super::egress::{EgressControl, EgressId};
use super::slots::AuxSlots;

/// [`Handler::tick`] is called at least this often.
pub const TICK: Duration = Duration::from_millis(50);
/// Where a frame came from, and so what its first byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The TAP: an Ethernet frame.
    Tap,
    /// A [`super::TunnelSocket`]: an outer packet, from its IP header on.
    Tunnel,
    /// A neighbour request: an Ethernet frame.
    Neighbour {
        /// Place of the interface in [`super::EngineConfig::neighbours`].
        interface: u16,
    },
    /// An ICMP or ICMPv6 error about an outer packet, from its IP header on.
    OuterError,
}

/// What becomes of a received slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    /// It is free again.
    Release,
    /// Part of it is sent; it is free when that has completed.
    Send {
        /// The way out.
        egress: EgressId,
        /// The bytes to send, counted from the start of the slot.
        range: Range<usize>,
        /// Given back by [`Handler::sent`].
        token: u32,
    },
}

/// What a worker does with frames. All calls are made on the thread of [`super::Engine::run`].
pub trait Handler {
    /// Once per batch, before its frames. `now_ns` is [`super::clock::boottime_ns`]. The time to look at
    /// the snapshot and to install or remove paths.
    fn batch(&mut self, now_ns: u64, egress: &mut EgressControl<'_>);

    /// Whether [`Handler::ahead`] is worth its time now.
    fn looks_ahead(&self) -> bool {
        false
    }

    /// A frame of an input that [`Handler::frame`] gets soon, after others of its batch: the time to
    /// fetch into the cache what it will need.
    fn ahead(&self, _frame: &[u8]) {}

    /// One received frame: `slot` is the whole slot, `frame` the place of the received bytes in it,
    /// which have [`super::HEADROOM`] bytes in front at least.
    fn frame(
        &mut self,
        source: Source,
        slot: &mut [u8],
        frame: Range<usize>,
        aux: &mut AuxSlots,
    ) -> Disposition;

    /// After each batch: the time to take what other threads have left for this one. `true` when
    /// there is more to do at once, without waiting.
    fn inbox(&mut self, _aux: &mut AuxSlots) -> bool {
        false
    }

    /// A send has completed; called exactly once for each one asked for, before its slot is used
    /// again. `EAGAIN` and `ENOBUFS`: the way out is full. `ENXIO`: the path is not installed.
    fn sent(&mut self, token: u32, result: Result<(), Errno>);

    /// At least every [`TICK`], also when nothing is received.
    fn tick(&mut self, now_ns: u64, aux: &mut AuxSlots, counters: &IoCounters);

    /// Looked at once per batch. After `true` the engine ends what is in flight, and returns.
    fn stop_requested(&self) -> bool;
}

/// What the engine itself counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct IoCounters {
    /// Batches of completions.
    pub batches: u64,
    /// Frames from the TAP, or packets from tunnel sockets.
    pub tap_frames: u64,
    /// Frames from neighbour and error sockets.
    pub source_frames: u64,
    /// Times that a socket reported an error (interface down, for example).
    pub source_errors: u64,
    /// Times that reading the TAP or tunnel sockets stopped because all slots were in use. What comes meanwhile waits
    /// in their queue, and is lost there once that is full.
    pub out_of_slots: u64,
    /// Times that the multishot read was armed.
    pub armed: u64,
}

impl std::ops::AddAssign for IoCounters {
    /// Those of several engines together.
    fn add_assign(&mut self, other: Self) {
        let Self { batches, tap_frames, source_frames, source_errors, out_of_slots, armed } = other;
        self.batches += batches;
        self.tap_frames += tap_frames;
        self.source_frames += source_frames;
        self.source_errors += source_errors;
        self.out_of_slots += out_of_slots;
        self.armed += armed;
    }
}
