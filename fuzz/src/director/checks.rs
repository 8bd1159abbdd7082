//! What must hold after every step, seen from outside of the core and read by etherparse.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use adit::dataplane::conntrack::{Class, FlowKey, FlowRecord, Ticks};
use adit::dataplane::counters::Counter;
use adit::dataplane::ids::{DestinationId, RealId, VipId};
use adit::dataplane::packet::{
    Datagram, ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, TcpSegment, address, be16, ip_addr,
    protocol, tcp_flag, udp_ports,
};
use adit::dataplane::path_mtu::cookie;
use adit::dataplane::time::Time;
use adit::dataplane::verdict::{Account, DropReason, EgressId, ReplyTo, Source, Verdict};
use adit_tunnel::{DecapError, decapsulate};
use etherparse::{
    Icmpv4Slice, NetSlice, SlicedPacket, TransportSlice, checksum::Sum16BitWords,
    defrag::IpDefragPool,
};

use super::Reached;
use super::shell::{Output, Shell};
use super::world::{COOKIE_SECRETS, DIRECT, KERNEL, REALS, VIPS, World, checked, link_header};
use crate::checksums;

/// What identifies a flow: client, its port, VIP, its port, protocol.
pub(super) type FlowId = ([u8; 16], u16, VipId, u16, u8);
/// The flows of the table, by key.
pub(super) type Flows = BTreeMap<FlowId, FlowRecord>;

/// What was there before a step.
pub(super) struct Before {
    flows: Flows,
    frame: Vec<u8>,
    source: Source,
    /// The IP packet in the frame, if it is one.
    datagram: Option<Datagram>,
}

impl Before {
    fn segment(&self) -> Option<TcpSegment> {
        let datagram = self.datagram.filter(|it| it.protocol == protocol::TCP)?;
        TcpSegment::parse(&datagram, &self.frame[ETHERNET_HEADER..]).ok()
    }

    /// Whether it is, or begins, an ICMP error.
    fn is_icmp_error(&self) -> bool {
        let icmp = |it: &Datagram| matches!(it.protocol, protocol::ICMP | protocol::ICMPV6);
        self.datagram.filter(icmp).filter(Datagram::has_upper_layer).is_some_and(|datagram| {
            let kind = self.frame.get(ETHERNET_HEADER + datagram.header_len);
            kind.is_some_and(|kind| is_icmp_error(datagram.protocol == protocol::ICMP, *kind))
        })
    }

    fn flags(&self) -> u8 {
        self.segment().map_or(0, |segment| segment.flags)
    }
}

#[derive(Default)]
pub(super) struct Checks {
    received: u64,
    verdicts: BTreeSet<&'static str>,
}

impl Checks {
    /// Looks at the world before a frame is handled, or before timers run.
    pub(super) fn before(&mut self, world: &World, source: Source, frame: &[u8]) -> Before {
        let datagram = frame
            .get(ETHERNET_HEADER..)
            .filter(|_| source == Source::Tap)
            .filter(|_| matches!(be16(frame, 12), ETHERTYPE_IPV4 | ETHERTYPE_IPV6))
            .and_then(|packet| Datagram::parse(packet).ok());
        Before { flows: flows(world), frame: frame.to_vec(), source, datagram }
    }

    /// Looks at the world after a frame.
    pub(super) fn after(
        &mut self,
        world: &World,
        now: Time,
        before: &Before,
        verdict: &Verdict,
        slot: &[u8],
        outputs: &[Output],
    ) {
        self.received += 1;
        assert_eq!(world.counters.worker.received.get(), self.received);
        self.verdicts.insert(name(verdict));
        established_flows_stay(world, now, before);
        match verdict {
            Verdict::Forward { egress, range } => {
                let outer = outer_packet(*egress, &slot[range.clone()]).expect("not into the TAP");
                let (real, inner) = outer_is_right(world, outer).expect("not a fragment");
                forwarded(world, now, before, real, inner);
            }
            Verdict::Reply { to, range } => reply_is_right(before, *to, &slot[range.clone()]),
            Verdict::Fragmented => {
                let alone = before.datagram.is_some_and(|datagram| datagram.fragment.is_none());
                if alone {
                    let (real, inner) = reassemble(outputs);
                    forwarded(world, now, before, real, &inner);
                }
            }
            Verdict::Pass | Verdict::HandedOver | Verdict::Hold | Verdict::Drop(_) => {}
        }
        for output in outputs {
            match (output.account, outer_packet(output.egress, &output.bytes)) {
                (Account::Forward | Account::Extra, Some(outer)) => {
                    outer_is_right(world, outer);
                }
                (Account::Reply, None) => reply_is_right(before, ReplyTo::Tap, &output.bytes),
                (account, _) => panic!("{account:?} on {:?}", output.egress),
            }
        }
    }

    /// Looks at the world after timers have run.
    pub(super) fn after_tick(&self, world: &World, now: Time, before: &Before) {
        established_flows_stay(world, now, before);
    }

    /// The ledger balances, and its gauge is what the shell knows to be on its way.
    pub(super) fn ledger(&self, world: &World, shell: &Shell) {
        assert!(world.counters.ledger_balances(), "{:?}", world.counters);
        assert_eq!(world.counters.worker.in_flight.get(), shell.in_flight());
    }

    /// Nothing is left of anything, once all sends have completed and all timers run out.
    pub(super) fn at_rest(&self, world: &World) {
        let worker = world.counters.worker.read();
        assert_eq!((worker.in_flight, worker.held), (0, 0), "{:?}", world.counters);
        assert!(flows(world).is_empty(), "flows outlived their timeouts");
        for destination in world.counters.destinations.iter() {
            let reading = destination.read();
            assert_eq!((reading.active, reading.inactive), (0, 0), "{reading:?}");
        }
    }

    pub(super) fn reached(self, world: &World) -> Reached {
        let dropped = DropReason::ALL
            .iter()
            .copied()
            .filter(|reason| Counter::get(world.counters.dropped(*reason)) > 0)
            .collect();
        Reached { verdicts: self.verdicts, dropped }
    }
}

/// Whether a message of this type must not be answered (RFC 1122 section 3.2.2, RFC 4443 section 2.4):
/// an error, or a redirect.
pub(super) const fn is_icmp_error(v4: bool, kind: u8) -> bool {
    if v4 { matches!(kind, 3 | 4 | 5 | 11 | 12 | 40) } else { kind < 128 || kind == 137 }
}

const fn name(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Forward { .. } => "forward",
        Verdict::Fragmented => "fragmented",
        Verdict::Reply { .. } => "reply",
        Verdict::Pass => "pass",
        Verdict::HandedOver => "handed over",
        Verdict::Hold => "hold",
        Verdict::Drop(_) => "drop",
    }
}

/// The flows that are in the table now, those whose time is over too.
pub(super) fn flows(world: &World) -> Flows {
    let records: Vec<_> =
        world.slots.iter().filter_map(|slot| slot.read().expect("a slot of this format")).collect();
    let flows: Flows = records.iter().map(|record| (key(&record.key), *record)).collect();
    assert_eq!(flows.len(), records.len(), "a flow is in the table twice");
    flows
}

fn key(key: &FlowKey) -> FlowId {
    (key.client, key.client_port, key.vip, key.vip_port, key.protocol)
}

/// An established flow stays, and stays where it is, until it is idle for too long or its real
/// server is cut.
fn established_flows_stay(world: &World, now: Time, before: &Before) {
    let after = flows(world);
    for (key, old) in &before.flows {
        let cut = world.snapshot.destination(old.destination).is_none();
        let expired = old.progress.is_expired(Ticks::at(now));
        if old.progress.class != Class::Established || cut || expired {
            continue;
        }
        let new = after.get(key).unwrap_or_else(|| panic!("an established flow is gone: {old:?}"));
        assert_eq!((new.real, new.destination), (old.real, old.destination));
        assert_eq!(new.progress.created, old.progress.created, "replaced: {old:?}");
        // Only its client's FIN or an exact RST can end it, a SYN cannot take it back.
        match new.progress.class {
            Class::Established => {}
            Class::ClosingFin => assert!(before.flags() & tcp_flag::FIN != 0, "{old:?}"),
            Class::ClosingRst => {
                let segment = before.segment().expect("a TCP flow");
                assert!(segment.flags & tcp_flag::RST != 0, "{old:?}");
                assert_eq!(segment.sequence, old.progress.sequence_end, "a blind reset");
            }
            Class::HalfOpen | Class::Unproven => panic!("demoted: {old:?}"),
        }
    }
}

/// The outer packet of an output, its link header checked; `None` for what goes into the TAP.
pub(super) fn outer_packet(egress: EgressId, bytes: &[u8]) -> Option<&[u8]> {
    match egress {
        DIRECT => {
            let (header, packet) = bytes.split_at(ETHERNET_HEADER);
            assert_eq!(header, link_header(packet[0] >> 4 == 6));
            Some(packet)
        }
        KERNEL => Some(bytes),
        EgressId::TAP => None,
        other => panic!("no such egress: {other:?}"),
    }
}

/// An outer packet fits its path and goes to a real server; the real server and the inner packet,
/// unless it is a fragment.
fn outer_is_right<'a>(world: &World, outer: &'a [u8]) -> Option<(RealId, &'a [u8])> {
    assert!(outer.len() <= world.link_mtu(), "{} bytes", outer.len());
    match decapsulate(outer) {
        Ok(out) => {
            let with_cookie = out.outer.dont_fragment && out.outer.destination.is_ipv4();
            let cookie = cookie(out.inner, COOKIE_SECRETS[0]);
            assert!(!with_cookie || out.outer.identification == cookie);
            Some((real_at(out.outer.destination), out.inner))
        }
        Err(DecapError::Fragment) => None,
        Err(error) => panic!("{error}: {outer:02x?}"),
    }
}

fn real_at(address: IpAddr) -> RealId {
    let position = REALS.iter().position(|real| *real == address);
    let position = position.unwrap_or_else(|| panic!("{address} is no real server"));
    RealId(u32::try_from(position).expect("six real servers"))
}

/// The packet in the outer fragments, put together by etherparse.
fn reassemble(outputs: &[Output]) -> (RealId, Vec<u8>) {
    let mut pool = IpDefragPool::<(), ()>::new();
    let mut whole = None;
    for output in outputs {
        let packet = outer_packet(output.egress, &output.bytes).expect("not into the TAP");
        let sliced = SlicedPacket::from_ip(packet).expect("an outer packet");
        let net = sliced.net.as_ref().expect("an IP packet");
        let destination: IpAddr = match net {
            NetSlice::Ipv4(ip) => ip.header().destination_addr().into(),
            NetSlice::Ipv6(ip) => ip.header().destination_addr().into(),
            NetSlice::Arp(_) => panic!("ARP in a tunnel"),
        };
        if let Some(done) = pool.process_sliced_packet(&sliced, (), ()).expect("pieces fit") {
            assert!(whole.is_none(), "complete twice");
            whole = Some((real_at(destination), done.payload));
        }
    }
    whole.expect("all pieces were sent")
}

/// What reached a real server is what was received, and it is the flow's own real server.
fn forwarded(world: &World, now: Time, before: &Before, real: RealId, inner: &[u8]) {
    let datagram = before.datagram.expect("only packets are forwarded");
    let received = &before.frame[ETHERNET_HEADER..][..datagram.total_len];
    let mut expected = received.to_vec();
    if world.snapshot.decrement_hop_limit {
        if expected[0] >> 4 == 4 {
            expected[8] -= 1;
            let checksum = checksums::ipv4(&expected);
            expected[10..12].copy_from_slice(&checksum);
        } else {
            expected[7] -= 1;
        }
    }
    assert_eq!(inner, expected, "the inner packet was changed");
    if datagram.fragment.is_some_and(|fragment| fragment.offset != 0) {
        return;
    }
    let Some(packet) = Transport::read(&datagram, received) else { return };
    if let Some(pinned) = packet.check(world, datagram.hop_limit) {
        assert_eq!(real, pinned, "a check went elsewhere");
        assert_eq!(flows(world), before.flows, "a check touched the table");
        return;
    }
    let alive = |old: &&FlowRecord| {
        let anew =
            packet.begins && matches!(old.progress.class, Class::ClosingFin | Class::ClosingRst);
        let cut = world.snapshot.destination(old.destination).is_none();
        !anew && !cut && !old.progress.is_expired(Ticks::at(now))
    };
    if let Some(old) = before.flows.get(&packet.key).filter(alive) {
        assert_eq!(old.real, real, "the flow went elsewhere: {old:?}");
    } else if let Some(new) = flows(world).get(&packet.key)
        && !new.progress.is_expired(Ticks::at(now))
    {
        assert_eq!(new.real, real, "entered for another: {new:?}");
        let member = world.members[new.destination.index()].expect("a member that was not cut");
        assert!(!member.down, "sent to a dead member: {new:?}");
        let opens = packet.begins || datagram.protocol == protocol::UDP;
        assert!(!opens || member.is_eligible(), "a new flow for {member:?}");
    }
}

/// What identifies the flow of a packet.
struct Transport {
    key: FlowId,
    /// A SYN, which begins a closing flow anew.
    begins: bool,
    is_reset: bool,
}

impl Transport {
    fn read(datagram: &Datagram, packet: &[u8]) -> Option<Self> {
        let vip = VIPS.iter().position(|vip| address(*vip) == datagram.destination)?;
        let vip = VipId(u32::try_from(vip).expect("three VIPs"));
        let (client_port, vip_port, begins, is_reset) = match datagram.protocol {
            protocol::TCP => {
                let segment = TcpSegment::parse(datagram, packet).ok()?;
                let begins = segment.flags & (tcp_flag::SYN | tcp_flag::RST) == tcp_flag::SYN;
                let is_reset = segment.flags & tcp_flag::RST != 0;
                (segment.source_port, segment.destination_port, begins, is_reset)
            }
            protocol::UDP => {
                let (client_port, vip_port) = udp_ports(datagram, packet).ok()?;
                (client_port, vip_port, false, false)
            }
            _ => return None,
        };
        let key = (datagram.source, client_port, vip, vip_port, datagram.protocol);
        Some(Self { key, begins, is_reset })
    }

    /// The real server that it is a check of.
    fn check(&self, world: &World, hop_limit: u8) -> Option<RealId> {
        let (client, port, vip, vip_port, protocol) = self.key;
        let first = (vip, vip_port, protocol) == (VipId(0), 5432, protocol::TCP);
        let own = checked(ip_addr(&client), port, hop_limit, self.is_reset)?;
        // A destination of the first service has its real server's number.
        let there = world.snapshot.destination(DestinationId(own.0)).is_some();
        (world.checks() && first && there).then_some(own)
    }
}

/// An answer goes back to who asked, from a VIP, and all its checksums are right.
fn reply_is_right(before: &Before, to: ReplyTo, bytes: &[u8]) {
    assert_eq!(to == ReplyTo::ClientInterface, before.source == Source::Neighbour);
    assert!(!before.is_icmp_error(), "an ICMP error was answered");
    let sliced = SlicedPacket::from_ethernet(bytes).expect("an answer is a frame");
    let (source, destination) = match sliced.net.as_ref().expect("ARP or IP") {
        NetSlice::Arp(_) => return,
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            (IpAddr::from(header.source), IpAddr::from(header.destination))
        }
        NetSlice::Ipv6(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
    };
    assert!(VIPS.contains(&source), "an answer from {source}");
    if let Some(datagram) = before.datagram
        && datagram.protocol != protocol::ICMPV6
    {
        assert_eq!(ip_addr(&datagram.source), destination);
        assert_eq!(bytes[..6], before.frame[6..12], "to who asked");
    }
    let plain = |pseudo: Sum16BitWords, message: &[u8]| {
        assert_eq!(pseudo.add_slice(message).ones_complement(), 0, "checksum of {message:02x?}");
    };
    match (sliced.transport.as_ref().expect("ICMP or TCP"), source, destination) {
        (TransportSlice::Icmpv4(message), ..) => icmpv4_is_right(message, plain),
        (TransportSlice::Icmpv6(message), IpAddr::V6(source), IpAddr::V6(destination)) => {
            assert!(message.is_checksum_valid(source.octets(), destination.octets()));
        }
        (TransportSlice::Tcp(segment), source, destination) => {
            let header = segment.to_header();
            let right = match (source, destination) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => header.calc_checksum_ipv4_raw(
                    source.octets(),
                    destination.octets(),
                    segment.payload(),
                ),
                (IpAddr::V6(source), IpAddr::V6(destination)) => header.calc_checksum_ipv6_raw(
                    source.octets(),
                    destination.octets(),
                    segment.payload(),
                ),
                _ => panic!("two families in one packet"),
            };
            assert_eq!(right.ok(), Some(header.checksum));
            assert!(header.rst, "the only segments that a director sends");
        }
        (other, ..) => panic!("an answer of another kind: {other:?}"),
    }
}

fn icmpv4_is_right(message: &Icmpv4Slice<'_>, plain: impl Fn(Sum16BitWords, &[u8])) {
    plain(Sum16BitWords::new(), message.slice());
}
