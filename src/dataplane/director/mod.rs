//! The director's core: [`Director::handle`] takes a frame to its verdict.
//!
//! The stages, in the order a packet meets them: link header and IP header (here), messages of
//! ICMP ([`icmp`]), fragments ([`fragment`]), the flow and its real server ([`balance`]), the
//! tunnel ([`forward`]).

mod balance;
mod forward;
mod fragment;
mod icmp;

use std::{ops::Range, sync::Arc};

use super::{
    conntrack::{FlowTable, Slot},
    counters::Counters,
    fragments::Fragments,
    neighbour,
    packet::{self, Datagram, PacketError, protocol},
    path_mtu::{OuterError, PathMtus},
    persistence::PersistenceIndex,
    rate_limit::RateLimiter,
    reply,
    snapshot::Snapshot,
    time::Time,
    verdict::{Account, DropReason, Event, Outlet, ReplyTo, SendResult, Source, Verdict},
};

/// What a director is made of. Everything is allocated when these are.
pub struct Parts<S> {
    /// Flow table over its region.
    pub flows: FlowTable<S>,
    /// Decisions and holds for fragmented datagrams.
    pub fragments: Fragments,
    /// Path MTU per real server.
    pub path_mtus: PathMtus,
    /// Limits on what Adit emits.
    pub emit_limits: RateLimiter,
    /// Persistence, shared with control.
    pub persistence: Arc<PersistenceIndex>,
    /// Counters, shared with control.
    pub counters: Arc<Counters>,
}

/// The pure core of one worker.
pub struct Director<S> {
    parts: Parts<S>,
    secret: u64,
}

/// One call's surroundings: the time, the world and the shell.
struct Context<'a, O> {
    now: Time,
    snapshot: &'a Snapshot,
    outlet: &'a mut O,
}

/// The received bytes: the whole slot, the frame in it and the IP packet in that.
struct Received<'a> {
    slot: &'a mut [u8],
    frame: Range<usize>,
    ip: Range<usize>,
}

impl Received<'_> {
    fn packet(&self) -> &[u8] {
        &self.slot[self.ip.clone()]
    }
}
