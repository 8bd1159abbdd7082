//! The director's core: [`Director::handle`] takes a frame to its verdict.
//!
//! The stages, in the order a packet meets them: link header and IP header (here), messages of
//! ICMP ([`icmp`]), fragments ([`fragment`]), the flow and its real server ([`balance`]), the
//! tunnel ([`forward`]).

mod balance;
mod forward;
mod fragment;
mod hand_over;
mod icmp;

pub use hand_over::Team;

use std::{ops::Range, sync::Arc, time::Duration};

use super::{
    conntrack::{Class, FlowTable, Slot},
    counters::Counters,
    fragments::Fragments,
    neighbour,
    packet::{self, Datagram, protocol},
    path_mtu::{OuterError, OuterNotice, PathMtus},
    persistence::PersistenceIndex,
    rate_limit::{Emission, RateLimiter},
    reply,
    snapshot::Snapshot,
    time::Time,
    verdict::{
        Account, DropReason, Event, HEADROOM, HandOver, Outlet, ReplyTo, SendResult, Source,
        Verdict,
    },
};
use hand_over::Whose;

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
    /// Its place among the workers.
    pub team: Team,
}

/// The pure core of one worker.
pub struct Director<S> {
    parts: Parts<S>,
    /// Where held fragments are wrapped: headroom and the largest IP packet.
    staging: Box<[u8]>,
    /// When control is next told of an address conflict.
    next_conflict: Time,
}

/// Control is told of conflicts once a second: any host on the link can send them, and must not
/// crowd out other events. All are counted.
const CONFLICT_INTERVAL: Duration = Duration::from_secs(1);

/// Flows from which on a look ahead pays: those of a smaller table stay in the L2 cache (at some 80
/// bytes a flow), beside what the kernel needs there.
const LOOK_AHEAD_FLOWS: u32 = 8192;

/// One call's surroundings: the time, the world and the shell.
struct Context<'a, O> {
    now: Time,
    snapshot: &'a Snapshot,
    outlet: &'a mut O,
    /// Whether it is settled that the flow is this worker's, or nobody's.
    settled: bool,
}

/// The received bytes: the whole slot, the frame in it and the IP packet in that.
struct Received<'a> {
    slot: &'a mut [u8],
    frame: Range<usize>,
    ip: Range<usize>,
}

impl<'a> Received<'a> {
    /// A fragment that was held, back in a slot: behind the link header that it came over.
    fn held(slot: &'a mut [u8], packet: &[u8], link: &LinkHeader) -> Self {
        let ip = HEADROOM..HEADROOM + packet.len();
        let frame = ip.start - packet::ETHERNET_HEADER..ip.end;
        slot[ip.clone()].copy_from_slice(packet);
        slot[frame.start..ip.start].copy_from_slice(&link.forth());
        Self { slot, frame, ip }
    }

    fn packet(&self) -> &[u8] {
        &self.slot[self.ip.clone()]
    }
}

impl<S: AsRef<[Slot]>> Director<S> {
    /// A director of these parts.
    pub fn new(parts: Parts<S>) -> Self {
        let staging = vec![0; HEADROOM + usize::from(u16::MAX)].into();
        Self { parts, staging, next_conflict: Time::ZERO }
    }

    /// Takes one received frame to its verdict. `slot` is the whole slot, with at least
    /// [`super::verdict::HEADROOM`] bytes in front of `frame`; both are rewritten in place.
    /// Never fails, never blocks, never allocates.
    pub fn handle<O: Outlet>(
        &mut self,
        now: Time,
        snapshot: &Snapshot,
        source: Source,
        slot: &mut [u8],
        frame: Range<usize>,
        outlet: &mut O,
    ) -> Verdict {
        self.parts.counters.worker.received.add(1);
        let settled = !self.parts.team.is_shared();
        self.decide(&mut Context { now, snapshot, outlet, settled }, source, slot, frame)
    }

    /// As [`Director::handle`], for a frame that another worker handed over to this one.
    pub fn take_over<O: Outlet>(
        &mut self,
        now: Time,
        snapshot: &Snapshot,
        handed: HandOver,
        slot: &mut [u8],
        frame: Range<usize>,
        outlet: &mut O,
    ) -> Verdict {
        self.parts.counters.worker.taken_over.add(1);
        let HandOver { source, settled, .. } = handed;
        self.decide(&mut Context { now, snapshot, outlet, settled }, source, slot, frame)
    }

    #[inline]
    fn decide<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        source: Source,
        slot: &mut [u8],
        frame: Range<usize>,
    ) -> Verdict {
        let verdict = match source {
            Source::Tap => self.tap_frame(context, slot, frame),
            Source::Neighbour => {
                self.neighbour(context, context.snapshot.client_mac, source, slot, frame)
            }
            Source::OuterError => self.outer_error(context, slot.get(frame).unwrap_or(&[])),
        };
        self.account(&verdict);
        verdict
    }

    /// Whether [`Director::ahead`] pays: only where the flows do not fit the cache.
    pub fn looks_ahead(&self) -> bool {
        self.parts.flows.counts().total() >= LOOK_AHEAD_FLOWS
    }

    /// Fetches into the cache what [`Director::handle`] will look up for a frame from the TAP. When
    /// the frames of a batch are all shown here first, their cache misses happen at the same time
    /// instead of one after the other. Decides nothing, so that a wrong guess costs time only.
    #[inline]
    pub fn ahead(&self, snapshot: &Snapshot, frame: &[u8]) {
        let Some(bytes) = frame.get(packet::ETHERNET_HEADER..) else { return };
        let Ok(datagram) = Datagram::parse(bytes) else { return };
        let Some(vip) = snapshot.services.vip(&datagram.destination) else { return };
        if datagram.fragment.is_none()
            && matches!(datagram.protocol, protocol::TCP | protocol::UDP)
            && let Ok(incoming) = balance::Incoming::read(&datagram, bytes, vip)
        {
            self.parts.flows.warm(&incoming.key);
        }
    }

    /// Enters a verdict into the ledger.
    fn account(&self, verdict: &Verdict) {
        let worker = &self.parts.counters.worker;
        match verdict {
            Verdict::Forward { .. } | Verdict::Fragmented | Verdict::Reply { .. } => {
                worker.in_flight.add(1);
            }
            Verdict::Pass => worker.passed.add(1),
            Verdict::HandedOver => worker.handed_over.add(1),
            Verdict::Hold => worker.held.add(1),
            Verdict::Drop(reason) => self.parts.counters.dropped(*reason).add(1),
        }
    }

    /// A send completed. The shell calls this exactly once for each send: for the received slot
    /// with [`Account::Forward`] or [`Account::Reply`] as the verdict was, for auxiliary slots with
    /// the account they were sent with.
    pub fn sent(&mut self, account: Account, result: SendResult) {
        let counters = &self.parts.counters;
        let worker = &counters.worker;
        let lost = match result {
            SendResult::Sent => None,
            SendResult::QueueFull => Some(DropReason::EgressFull),
            SendResult::Failed => Some(DropReason::EgressError),
        };
        match (account, lost) {
            (Account::Extra, None) => worker.output_packets.add(1),
            (Account::Extra, Some(_)) => worker.output_failed.add(1),
            (Account::Forward, None) => {
                worker.in_flight.sub(1);
                worker.forwarded.add(1);
                worker.output_packets.add(1);
            }
            (Account::Reply, None) => {
                worker.in_flight.sub(1);
                worker.replied.add(1);
            }
            (Account::Forward | Account::Reply, Some(reason)) => {
                worker.in_flight.sub(1);
                counters.dropped(reason).add(1);
            }
        }
    }

    /// Timers: sweeps a bounded piece of the flow table, lets held fragments go, says how full the
    /// table is. Called at least every few tens of milliseconds, also when idle.
    pub fn tick(&mut self, now: Time) {
        self.expire_fragments(now);
        self.batch(now);
        let counts = self.parts.flows.counts();
        for class in Class::ALL {
            self.parts.counters.flows(class).set(u64::from(counts.of(class)));
        }
    }

    /// A batch of packets begins: sweeps what is due of the flow table. Cheap when called often.
    pub fn batch(&mut self, now: Time) {
        let Parts { flows, counters, .. } = &mut self.parts;
        flows.sweep_due(now, |ended| balance::count_ended(counters, &ended));
    }

    /// A frame from the TAP: link header, then by ethertype.
    fn tap_frame<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        slot: &mut [u8],
        frame: Range<usize>,
    ) -> Verdict {
        let Some(bytes) = slot.get(frame.clone()).filter(|b| b.len() >= packet::ETHERNET_HEADER)
        else {
            return Verdict::Drop(DropReason::Truncated);
        };
        let ethertype = packet::be16(bytes, 12);
        let ip = frame.start + packet::ETHERNET_HEADER..frame.end;
        match (ethertype, slot[ip.clone()].first().map(|byte| byte >> 4)) {
            (packet::ETHERTYPE_ARP, _) => {
                let mac = Some(context.snapshot.tap_mac);
                self.neighbour(context, mac, Source::Tap, slot, frame)
            }
            (packet::ETHERTYPE_IPV4, Some(4)) | (packet::ETHERTYPE_IPV6, Some(6)) => {
                match Datagram::parse(&slot[ip.clone()]) {
                    Ok(datagram) => {
                        let end = ip.start + datagram.total_len;
                        let received = Received { slot, frame, ip: ip.start..end };
                        self.datagram(context, &datagram, received)
                    }
                    Err(error) => Verdict::Drop(error.into()),
                }
            }
            (packet::ETHERTYPE_IPV4 | packet::ETHERTYPE_IPV6, None) => {
                Verdict::Drop(DropReason::Truncated)
            }
            (packet::ETHERTYPE_IPV4 | packet::ETHERTYPE_IPV6, Some(_)) => {
                Verdict::Drop(DropReason::Malformed)
            }
            _ => Verdict::Drop(DropReason::NotIp),
        }
    }

    /// A well-formed IP packet from the TAP.
    fn datagram<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        datagram: &Datagram,
        received: Received<'_>,
    ) -> Verdict {
        let snapshot = context.snapshot;
        if neighbour::is_solicitation(datagram, received.packet()) {
            let Received { slot, frame, .. } = received;
            return self.neighbour(context, Some(snapshot.tap_mac), Source::Tap, slot, frame);
        }
        if snapshot.bridged && !received.slot[received.frame.clone()].starts_with(&snapshot.tap_mac)
        {
            return Verdict::Pass;
        }
        let Some(vip) = snapshot.services.vip(&datagram.destination) else {
            // Multicast is the host's own, which it sends on every interface (MLD, mDNS).
            let own = is_multicast(&datagram.destination);
            return if own { Verdict::Pass } else { Verdict::Drop(DropReason::NotVip) };
        };
        if !is_client(&datagram.source) || snapshot.services.vip(&datagram.source).is_some() {
            return Verdict::Drop(DropReason::BadSource);
        }
        let received = if context.settled {
            received
        } else {
            match self.hand_over(context, datagram, vip, received) {
                Whose::Ours(received) => received,
                Whose::Decided(verdict) => return verdict,
            }
        };
        if datagram.fragment.is_some() {
            return self.fragment(context, datagram, vip, received);
        }
        match datagram.protocol {
            protocol::ICMP | protocol::ICMPV6 => self.icmp(context, datagram, received),
            _ => self.balance(context, datagram, vip, received),
        }
    }

    /// ARP and neighbour solicitations, from the TAP or the client-facing interface.
    fn neighbour<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        mac: Option<[u8; 6]>,
        source: Source,
        slot: &mut [u8],
        frame: Range<usize>,
    ) -> Verdict {
        let Some(mac) = mac else {
            return Verdict::Pass;
        };
        let snapshot = context.snapshot;
        let is_vip = |address: &packet::Address| snapshot.services.vip(address).is_some();
        match neighbour::answer(slot, frame, mac, is_vip) {
            neighbour::Answer::Reply(range) => {
                self.parts.counters.worker.neighbour_answers.add(1);
                let to = match source {
                    Source::Neighbour => ReplyTo::ClientInterface,
                    Source::Tap | Source::OuterError => ReplyTo::Tap,
                };
                Verdict::Reply { to, range }
            }
            neighbour::Answer::Conflict { vip, mac } => {
                self.parts.counters.worker.address_conflicts.add(1);
                if context.now >= self.next_conflict {
                    self.next_conflict = context.now + CONFLICT_INTERVAL;
                    self.event(context, Event::AddressConflict { vip, mac });
                }
                Verdict::Pass
            }
            neighbour::Answer::NotOurs => Verdict::Pass,
            neighbour::Answer::Malformed(reason) => Verdict::Drop(reason),
        }
    }

    /// An ICMP error about a packet that Adit sent into a tunnel. The kernel has its own copy.
    fn outer_error<O: Outlet>(&mut self, context: &mut Context<'_, O>, packet: &[u8]) -> Verdict {
        if !context.settled
            && let Some(verdict) = self.hand_over_outer_error(context, packet)
        {
            return verdict;
        }
        let Parts { flows, path_mtus, counters, .. } = &mut self.parts;
        let now = context.now;
        let check = |quote: &_| balance::check_quote(flows, now, context.snapshot, quote);
        match path_mtus.outer_error(now, packet, context.snapshot, check) {
            OuterError::Updated { real, mtu } => {
                counters.worker.path_mtu_updates.add(1);
                self.event(context, Event::PathMtu { real, mtu });
                Verdict::Pass
            }
            OuterError::Counted { kind, .. } => {
                let worker = &counters.worker;
                match kind {
                    OuterNotice::NoNews => {}
                    OuterNotice::Unreachable(_) => worker.tunnel_unreachable.add(1),
                    OuterNotice::TimeExceeded => worker.tunnel_time_exceeded.add(1),
                    OuterNotice::ParameterProblem => worker.tunnel_parameter_problem.add(1),
                }
                Verdict::Pass
            }
            OuterError::NotOurs | OuterError::OwnCheck => Verdict::Pass,
            OuterError::Forged => Verdict::Drop(DropReason::ForgedError),
            OuterError::Ignored => Verdict::Drop(DropReason::ErrorIgnored),
            OuterError::Malformed(reason) => Verdict::Drop(reason),
        }
    }

    /// Queues an event for control, or counts that the queue was full.
    fn event<O: Outlet>(&self, context: &mut Context<'_, O>, event: Event) {
        if !context.outlet.event(event) {
            self.parts.counters.worker.events_lost.add(1);
        }
    }

    /// Answers with an ICMP error, if one may be sent and the rate limit allows.
    fn reply_error<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        datagram: &Datagram,
        received: Received<'_>,
        kind: reply::ErrorReply,
        otherwise: DropReason,
    ) -> Verdict {
        // What gets no answer must not use up those that others are due.
        if !reply::may_be_answered_by_error(datagram, received.packet()) {
            return Verdict::Drop(otherwise);
        }
        if !self.parts.emit_limits.allow(context.now, Emission::IcmpError, &datagram.source) {
            return Verdict::Drop(DropReason::EmitRateLimited);
        }
        let link = LinkHeader::back(received.slot, received.frame.start);
        let Received { slot, ip, .. } = received;
        let Some(range) = reply::error_reply(slot, datagram, ip, kind) else {
            return Verdict::Drop(otherwise);
        };
        if matches!(kind, reply::ErrorReply::TooBig { .. }) {
            self.parts.counters.worker.too_big_sent.add(1);
        }
        link.reply(slot, range)
    }
}

/// The link header of a frame's answer, read before the answer is built over it.
struct LinkHeader([u8; packet::ETHERNET_HEADER]);

impl LinkHeader {
    /// Source and destination swapped, for the frame that starts at `frame`.
    fn back(slot: &[u8], frame: usize) -> Self {
        let mut header = [0; packet::ETHERNET_HEADER];
        header[..6].copy_from_slice(&slot[frame + 6..frame + 12]);
        header[6..12].copy_from_slice(&slot[frame..frame + 6]);
        header[12..].copy_from_slice(&slot[frame + 12..frame + packet::ETHERNET_HEADER]);
        Self(header)
    }

    /// The header as it was received.
    fn forth(&self) -> [u8; packet::ETHERNET_HEADER] {
        let mut header = self.0;
        header[..6].copy_from_slice(&self.0[6..12]);
        header[6..12].copy_from_slice(&self.0[..6]);
        header
    }

    /// Puts the header in front of the answer `ip` and sends both back into the TAP.
    fn reply(self, slot: &mut [u8], ip: Range<usize>) -> Verdict {
        let Some(start) = ip.start.checked_sub(self.0.len()) else {
            return Verdict::Drop(DropReason::NoEgress);
        };
        slot[start..ip.start].copy_from_slice(&self.0);
        Verdict::Reply { to: ReplyTo::Tap, range: start..ip.end }
    }
}

fn is_multicast(destination: &packet::Address) -> bool {
    match packet::Family::of(destination) {
        packet::Family::V4 => packet::ipv4(destination).is_multicast(),
        packet::Family::V6 => destination[0] == 0xff,
    }
}

/// Whether an address can be a client's: not multicast, unspecified, loopback or broadcast.
fn is_client(source: &packet::Address) -> bool {
    match packet::Family::of(source) {
        packet::Family::V4 => !matches!(packet::v4_octets(source)[0], 0 | 127 | 224..),
        packet::Family::V6 => {
            let loopback_or_unspecified = source[..15] == [0; 15] && source[15] <= 1;
            source[0] != 0xff && !loopback_or_unspecified
        }
    }
}
