//! A packet's flow and its real server: known flow, persistence, scheduler, or one guess.

use super::{
    super::{
        conntrack::{
            Class, EndReason, Ended, FlowKey, FlowTable, NewFlow, Observation, Observed, Slot,
            TcpSegment as TrackedSegment,
        },
        counters::{Counters, DestinationCounters, SharedCounter},
        hash::FlowTuple,
        ids::{DestinationId, VipId},
        packet::{self, Datagram, Quote, TcpSegment, protocol, tcp_flag},
        path_mtu::{FlowCheck, InnerQuote},
        probe::Pinned,
        rate_limit::Emission,
        reply,
        service::Service,
        snapshot::Snapshot,
        verdict::{DropReason, Event, Outlet, Verdict},
    },
    Context, Director, LinkHeader, Parts, Received, Time,
    forward::CHECK,
};

/// A packet of a flow, as far as choosing its real server is concerned.
pub(super) struct Incoming {
    pub(super) key: FlowKey,
    pub(super) segment: Option<TcpSegment>,
}

impl Incoming {
    /// Reads the transport header of a datagram that has it.
    pub(super) fn read(
        datagram: &Datagram,
        packet: &[u8],
        vip: VipId,
    ) -> Result<Self, packet::PacketError> {
        let (segment, (client_port, vip_port)) = match datagram.protocol {
            protocol::TCP => {
                let segment = TcpSegment::parse(datagram, packet)?;
                (Some(segment), (segment.source_port, segment.destination_port))
            }
            _ => (None, packet::udp_ports(datagram, packet)?),
        };
        let protocol = datagram.protocol;
        let key = FlowKey { client: datagram.source, client_port, vip, vip_port, protocol };
        Ok(Self { key, segment })
    }

    /// Whether it begins a flow, where it belongs to none.
    fn begins(&self) -> bool {
        self.segment.is_none_or(|segment| segment.opens())
    }

    /// What the flow table is told of it.
    fn observation(&self) -> Observation {
        self.segment.as_ref().map_or(Observation::Datagram, |segment| {
            let has = |flag| segment.flags & flag != 0;
            Observation::Tcp(TrackedSegment {
                sequence: segment.sequence,
                acknowledgement: segment.acknowledgement,
                #[expect(clippy::cast_possible_truncation, reason = "a payload is below 65536")]
                payload: segment.payload_len as u32,
                syn: has(tcp_flag::SYN),
                ack: has(tcp_flag::ACK),
                fin: has(tcp_flag::FIN),
                rst: has(tcp_flag::RST),
            })
        })
    }
}

/// The flow key of a packet that a real server sent to a client, from its quote in an ICMP error.
pub(super) fn reply_key(snapshot: &Snapshot, quote: &Quote, quoted: &[u8]) -> Option<FlowKey> {
    let (vip_port, client_port) = quote.ports(quoted)?;
    let vip = snapshot.services.vip(&quote.source)?;
    let protocol = quote.protocol;
    Some(FlowKey { client: quote.destination, client_port, vip, vip_port, protocol })
}

/// What the flow table knows of the inner packet that an ICMP error about an outer packet quotes.
pub(super) fn check_quote<S: AsRef<[Slot]>>(
    flows: &FlowTable<S>,
    now: super::Time,
    snapshot: &Snapshot,
    quote: &InnerQuote,
) -> FlowCheck {
    let Some(vip) = snapshot.services.vip(&quote.destination) else { return FlowCheck::Unknown };
    let key = FlowKey {
        client: quote.source,
        client_port: quote.source_port,
        vip,
        vip_port: quote.destination_port,
        protocol: quote.protocol,
    };
    match flows.lookup(now, &key) {
        None if snapshot.probes.can_be(&key) => FlowCheck::OwnCheck,
        None => FlowCheck::Unknown,
        Some(flow) => FlowCheck::Known {
            real: flows.real(flow),
            sequence_plausible: quote.sequence.is_none_or(|sequence| {
                was_sent(flows.record(flow).progress.sequence_end, sequence)
            }),
        },
    }
}

/// Bytes that may be in flight from a client: an error about a segment further back is not
/// believed. Twice Linux's default limit of a send buffer (`tcp_wmem`, 4 MiB).
const IN_FLIGHT_BOUND: u32 = 8 << 20;

/// Whether a segment that begins at `sequence` can lately have been sent by a client whose last
/// one ended at `sequence_end`.
const fn was_sent(sequence_end: u32, sequence: u32) -> bool {
    sequence_end.wrapping_sub(sequence) <= IN_FLIGHT_BOUND
}

/// What placed a flow without an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PlacedBy {
    /// Its service's scheduler.
    Scheduler,
    /// Its client's persistence.
    Persistence,
    /// It was met in its middle, and given to the one candidate it can belong to.
    Guess,
}

/// Who gets a flow without an entry.
enum Choice {
    /// A real server.
    To { destination: DestinationId, by: PlacedBy },
    /// Nobody.
    Nobody(DropReason),
    /// Nobody, and the client should know.
    Reset,
}

impl<S: AsRef<[Slot]>> Director<S> {
    /// A packet with its transport header in it, to a VIP. ICMP is handled elsewhere.
    pub(super) fn balance<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        datagram: &Datagram,
        vip: VipId,
        received: Received<'_>,
    ) -> Verdict {
        if !matches!(datagram.protocol, protocol::TCP | protocol::UDP) {
            return Verdict::Drop(DropReason::NoService);
        }
        let incoming = match Incoming::read(datagram, received.packet(), vip) {
            Ok(incoming) => incoming,
            Err(error) => return Verdict::Drop(error.into()),
        };
        let mut received = received;
        if context.snapshot.probes.has_port(incoming.key.client_port) {
            match self.check(context, datagram, &incoming, received) {
                Ok(verdict) => return verdict,
                Err(back) => received = back,
            }
        }
        match self.destination_of(context, &incoming, datagram) {
            Ok(destination) => self.forward(context, datagram, received, destination),
            Err(Refusal::Drop(reason)) => Verdict::Drop(reason),
            Err(Refusal::Reset) => self.reset(context, datagram, &incoming, received),
        }
    }

    /// A packet that may be one of the director's own checks; given back where it is none.
    #[cold]
    #[inline(never)]
    fn check<'a, O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        datagram: &Datagram,
        incoming: &Incoming,
        received: Received<'a>,
    ) -> Result<Verdict, Received<'a>> {
        let is_reset = incoming.segment.is_some_and(|s| s.flags & tcp_flag::RST != 0);
        let probes = &context.snapshot.probes;
        match probes.pinned(&incoming.key, datagram.hop_limit, is_reset) {
            Pinned::No => Err(received),
            Pinned::To(destination) => {
                Ok(self.forward_as::<O, CHECK>(context, datagram, received, destination))
            }
            Pinned::Stale => Ok(Verdict::Drop(DropReason::StaleProbe)),
        }
    }

    /// The destination of a packet, entering its flow if it is new.
    pub(super) fn destination_of<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        incoming: &Incoming,
        datagram: &Datagram,
    ) -> Result<DestinationId, Refusal> {
        let flows = &mut self.parts.flows;
        if let Some(flow) = flows.lookup(context.now, &incoming.key) {
            let id = flows.destination(flow);
            if let Some(destination) = context.snapshot.destination(id) {
                let timeouts = &destination.timeouts;
                match flows.observe(flow, context.now, timeouts, &incoming.observation()) {
                    Observed::Same => return Ok(id),
                    Observed::Moved { from, to } => {
                        self.moved(context, id, from, to, incoming);
                        return Ok(id);
                    }
                    Observed::Restart => {}
                }
            } else {
                // Its real server was cut (`reload --now`): the flow begins anew, or is refused.
                let ended = flows.remove(flow);
                count_ended(&self.parts.counters, &ended);
            }
        }
        self.without_entry(context, incoming, datagram)
    }

    fn without_entry<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        incoming: &Incoming,
        datagram: &Datagram,
    ) -> Result<DestinationId, Refusal> {
        let key = &incoming.key;
        let snapshot = context.snapshot;
        let service = snapshot
            .services
            .find(key.vip, key.protocol, key.vip_port)
            .ok_or(Refusal::Drop(DropReason::NoService))?;
        let tuple = FlowTuple {
            client: packet::ip_addr(&datagram.source),
            client_port: key.client_port,
            vip: packet::ip_addr(&datagram.destination),
            vip_port: key.vip_port,
            protocol: key.protocol,
        };
        if incoming.begins()
            && let Some(admission) = &service.admission
        {
            admission.admit(context.now, tuple.client).map_err(Refusal::Drop)?;
        }
        match self.choose(context, service, incoming, &tuple) {
            Choice::To { destination, by } => {
                let reset = incoming.segment.is_some_and(|s| s.flags & tcp_flag::RST != 0);
                if reset {
                    // It ends what nobody here tracks: delivered, but not entered.
                    self.count_placed(by);
                    return Ok(destination);
                }
                self.enter(context, service, incoming, &tuple, destination, by)
            }
            Choice::Nobody(reason) => Err(Refusal::Drop(reason)),
            Choice::Reset => Err(Refusal::Reset),
        }
    }

    /// Who has a flow: the table says, or, where flows go untracked (it has no room, or the service
    /// wants none in it), the hash. `vip` is the address of the key's VIP.
    pub(super) fn owner<O: Outlet>(
        &self,
        context: &Context<'_, O>,
        key: &FlowKey,
        vip: &packet::Address,
    ) -> Option<DestinationId> {
        let flows = &self.parts.flows;
        if let Some(flow) = flows.lookup(context.now, key) {
            return Some(flows.destination(flow));
        }
        let services = &context.snapshot.services;
        let service = services.find(key.vip, key.protocol, key.vip_port)?;
        let untracked = service.one_packet || !flows.has_room();
        if !untracked || !service.scheduler.is_hash() {
            return None;
        }
        let tuple = FlowTuple {
            client: packet::ip_addr(&key.client),
            client_port: key.client_port,
            vip: packet::ip_addr(vip),
            vip_port: key.vip_port,
            protocol: key.protocol,
        };
        let key = service.placement_key(&context.snapshot.hash_key, &tuple);
        let position = if service.one_packet {
            // Where its next datagram goes; a hash moves nothing by being asked.
            let gauges = &self.parts.counters.destinations;
            service.scheduler.schedule(&key, &service.candidates(gauges, context.now))?
        } else {
            service.scheduler.rederive(&key, &service.members)?
        };
        service.destinations.get(position).copied()
    }

    fn choose<O: Outlet>(
        &self,
        context: &Context<'_, O>,
        service: &Service,
        incoming: &Incoming,
        tuple: &FlowTuple,
    ) -> Choice {
        let begins = incoming.begins();
        if incoming.segment.is_some_and(|s| s.flags & tcp_flag::SYN != 0 && !s.opens()) {
            // SYN with ACK, FIN or RST: no client of a VIP sends that.
            return Choice::Nobody(DropReason::NoFlow);
        }
        let persisted = service.persistence.as_ref().and_then(|policy| {
            let prefix = policy.prefix(tuple.client);
            self.parts.persistence.lookup(context.now, policy.group, &prefix, |real| {
                let position = service.destinations.iter().position(|id| {
                    context.snapshot.destination(*id).is_some_and(|d| d.real == real)
                })?;
                let member = &service.members[position];
                let usable = if begins { member.is_eligible() } else { !member.down };
                usable.then_some(service.destinations[position])
            })
        });
        let key = || service.placement_key(&context.snapshot.hash_key, tuple);
        let schedule = || {
            let gauges = &self.parts.counters.destinations;
            service.scheduler.schedule(&key(), &service.candidates(gauges, context.now))
        };
        let to = |position: Option<usize>, by| {
            position.and_then(|position| service.destinations.get(position)).map_or(
                Choice::Nobody(DropReason::NoRealServer),
                |destination| Choice::To { destination: *destination, by },
            )
        };
        match (persisted, begins) {
            (Some(destination), _) => Choice::To { destination, by: PlacedBy::Persistence },
            (None, true) => to(schedule(), PlacedBy::Scheduler),
            (None, false) if service.scheduler.is_hash() => {
                to(service.scheduler.rederive(&key(), &service.members), PlacedBy::Guess)
            }
            (None, false) if context.snapshot.reset_unknown => Choice::Reset,
            (None, false) => Choice::Nobody(DropReason::NoFlow),
        }
    }

    /// Enters a flow, unless its service wants none in the table. When the table is full of
    /// established ones, a hash can do without an entry.
    fn enter<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        service: &Service,
        incoming: &Incoming,
        tuple: &FlowTuple,
        destination: DestinationId,
        by: PlacedBy,
    ) -> Result<DestinationId, Refusal> {
        let Some(real) = context.snapshot.destination(destination).map(|d| d.real) else {
            return Err(Refusal::Drop(DropReason::NoEgress));
        };
        if service.one_packet {
            self.count_placed(by);
            if let Some(counters) = self.parts.counters.destinations.get(destination.index()) {
                counters.connections.add(1);
            }
            return Ok(destination);
        }
        if !self.half_open_has_room(context.now, service, incoming) {
            if !finds_again(context.snapshot, service, tuple, destination, by) {
                return Err(Refusal::Drop(DropReason::HalfOpenLimited));
            }
            self.parts.counters.worker.untracked_half_open.add(1);
            // The entry of a connection before, which this one restarts, must not claim what follows.
            if let Some(flow) = self.parts.flows.lookup(context.now, &incoming.key) {
                let ended = self.parts.flows.remove(flow);
                count_ended(&self.parts.counters, &ended);
            }
            return Ok(destination);
        }
        let rederived = by == PlacedBy::Guess;
        let flow = NewFlow { key: incoming.key, real, destination, rederived };
        let observation = incoming.observation();
        service.note_load(destination, &self.parts.counters.destinations);
        match self.parts.flows.insert(context.now, &flow, &service.timeouts, &observation) {
            Ok(inserted) => {
                self.count_placed(by);
                if let Some(ended) = &inserted.ended {
                    count_ended(&self.parts.counters, ended);
                }
                if let Some(counters) = self.parts.counters.destinations.get(destination.index()) {
                    counters.connections.add(1);
                    gauge(counters, inserted.class).add(1);
                }
                service.note_load(destination, &self.parts.counters.destinations);
                Ok(destination)
            }
            Err(_) if finds_again(context.snapshot, service, tuple, destination, by) => {
                self.parts.counters.worker.untracked.add(1);
                Ok(destination)
            }
            Err(_) => Err(Refusal::Drop(DropReason::TableFull)),
        }
    }

    /// Whether one more half-open flow fits its service's limit, if need be in the place of the oldest.
    fn half_open_has_room(&mut self, now: Time, service: &Service, incoming: &Incoming) -> bool {
        let limit = service.admission.as_ref().and_then(|admission| admission.policy().half_open);
        let Some(limit) = limit.filter(|_| incoming.segment.is_some_and(|s| s.opens())) else {
            return true;
        };
        let Parts { flows, counters, .. } = &mut self.parts;
        if flows.half_open_to(&service.destinations) < limit {
            return true;
        }
        let ended = flows.give_way(now, &service.destinations);
        if let Some(ended) = &ended {
            count_ended(counters, ended);
        }
        ended.is_some()
    }

    fn count_placed(&self, by: PlacedBy) {
        let worker = &self.parts.counters.worker;
        let counter = match by {
            PlacedBy::Scheduler => &worker.scheduled,
            PlacedBy::Persistence => &worker.persisted,
            PlacedBy::Guess => &worker.rederived,
        };
        counter.add(1);
    }

    /// A flow moved to another class: gauges follow, persistence is written once it is established.
    fn moved<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        destination: DestinationId,
        from: Class,
        to: Class,
        incoming: &Incoming,
    ) {
        if let Some(counters) = self.parts.counters.destinations.get(destination.index()) {
            gauge(counters, from).sub(1);
            gauge(counters, to).add(1);
        }
        let persists =
            context.snapshot.destination(destination).is_some_and(|d| d.persistence.is_some());
        if to == Class::Established && persists {
            let client = incoming.key.client;
            self.event(context, Event::Established { destination, client });
        }
    }

    /// Tells the client that its connection is unknown here (RFC 9293 §3.10.7.1).
    fn reset<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        datagram: &Datagram,
        incoming: &Incoming,
        received: Received<'_>,
    ) -> Verdict {
        let Some(segment) = &incoming.segment else {
            return Verdict::Drop(DropReason::NoFlow);
        };
        // What gets no answer must not use up those that others are due.
        if !reply::may_be_reset(datagram, segment) {
            return Verdict::Drop(DropReason::NoFlow);
        }
        if !self.parts.emit_limits.allow(context.now, Emission::Reset, &datagram.source) {
            return Verdict::Drop(DropReason::EmitRateLimited);
        }
        let link = LinkHeader::back(received.slot, received.frame.start);
        let Received { slot, ip, .. } = received;
        let Some(range) = reply::reset(slot, datagram, segment, ip) else {
            return Verdict::Drop(DropReason::NoFlow);
        };
        self.parts.counters.worker.resets_sent.add(1);
        link.reply(slot, range)
    }
}

/// Whether the next segment of a flow without an entry finds the same destination: by a hash that
/// guesses it (a real server that drains or has reduced weight is guessed as if it had all), or by
/// persistence.
#[cold]
fn finds_again(
    snapshot: &Snapshot,
    service: &Service,
    tuple: &FlowTuple,
    destination: DestinationId,
    by: PlacedBy,
) -> bool {
    if !service.scheduler.is_hash() {
        return false;
    }
    if by != PlacedBy::Scheduler {
        return true;
    }
    let key = service.placement_key(&snapshot.hash_key, tuple);
    let guess = service.scheduler.rederive(&key, &service.members);
    guess.and_then(|position| service.destinations.get(position)) == Some(&destination)
}

/// Why a packet gets no destination.
pub(super) enum Refusal {
    /// Counted under the reason.
    Drop(DropReason),
    /// Answered by a reset.
    Reset,
}

/// The gauge in which a flow of a class counts.
const fn gauge(counters: &DestinationCounters, class: Class) -> &SharedCounter {
    if class.is_active() { &counters.active } else { &counters.inactive }
}

/// A flow left the table: gauges and eviction counters follow.
pub(super) fn count_ended(counters: &Counters, ended: &Ended) {
    let record = &ended.record;
    let class = record.progress.class;
    if let Some(destination) = counters.destinations.get(record.destination.index()) {
        gauge(destination, class).sub(1);
    }
    match (ended.reason, class) {
        (EndReason::Evicted, Class::HalfOpen) => counters.worker.evicted_half_open.add(1),
        (EndReason::Evicted, _) => counters.worker.evicted_unproven.add(1),
        (EndReason::GaveWay, _) => counters.worker.gave_way.add(1),
        (EndReason::Expired | EndReason::Replaced | EndReason::Removed, _) => {}
    }
}
