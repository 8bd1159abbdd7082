//! Every kind of tunnel through the whole core: what leaves is what the real server's kernel must be
//! given, and errors about it come home.

#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use std::collections::BTreeSet;
use std::net::IpAddr;

use adit::dataplane::{
    scheduler::SchedulerKind,
    snapshot::{Link, Outers, RealServer},
    verdict::{DropReason, EgressId, Event, SendResult, Source, Verdict},
};
use adit_tunnel::{Encapsulation, OuterTemplate, decapsulate_with};
use etherparse::SlicedPacket;
use etherparse::defrag::IpDefragPool;

use world::{
    LINK_HEADER, Outcome, ServiceSpec, World,
    frames::{Tcp, fragmentation_needed, udp},
    snapshot,
};

const CLIENT: &str = "203.0.113.7:40000";
const VIP: &str = "198.51.100.10:5432";
const PORT: u16 = 6080;
const KINDS: [Encapsulation; 5] = [
    Encapsulation::Ipip,
    Encapsulation::Gre { checksum: false },
    Encapsulation::Gre { checksum: true },
    Encapsulation::Gue { port: PORT, checksum: false },
    Encapsulation::Gue { port: PORT, checksum: true },
];

/// A world whose real servers are reached by `kind` from `sources`, at `mtu`.
fn world_of(kind: Encapsulation, sources: &[[u8; 4]], mtu: u16) -> World {
    changed(mtu, |real, destination| {
        let outer = |source: &[u8; 4]| {
            OuterTemplate::with(kind, IpAddr::from(*source), destination, 64).unwrap()
        };
        RealServer { outers: sources.iter().map(outer).collect(), ..real }
    })
}

/// A world in direct mode.
fn direct(mtu: u16) -> World {
    changed(mtu, |real, _| {
        let link =
            Link::Segment { egress: EgressId(1), macs: LINK_HEADER[..12].try_into().unwrap() };
        RealServer { outers: Outers::default(), link, ..real }
    })
}

fn changed(mtu: u16, change: impl Fn(RealServer, IpAddr) -> RealServer) -> World {
    let orders = || ServiceSpec::orders(SchedulerKind::Maglev);
    let udp = ServiceSpec { protocol: adit::dataplane::service::Protocol::Udp, ..orders() };
    let mut snapshot = snapshot(vec![orders(), udp]);
    let reals = snapshot.reals.iter().map(|(_, real)| {
        let destination = real.outers.iter().next().unwrap().destination();
        Some(RealServer { link_mtu: mtu, ..change(real.clone(), destination) })
    });
    snapshot.reals = reals.collect::<Vec<_>>().into();
    World::new(snapshot, 1000)
}

fn only(outcome: &Outcome) -> &[u8] {
    assert!(matches!(outcome.verdict, Verdict::Forward { .. }), "{:?}", outcome.verdict);
    assert_eq!(outcome.outputs.len(), 1);
    &outcome.outputs[0].bytes
}

/// The IP packet in a frame from a client.
fn packet(frame: &[u8]) -> &[u8] {
    &frame[14..]
}

/// Pieces put together: protocol and payload.
fn reassembled(outcome: &Outcome) -> (u8, Vec<u8>) {
    let mut pool = IpDefragPool::<(), ()>::new();
    let mut whole = None;
    for output in &outcome.outputs {
        let sliced = SlicedPacket::from_ip(&output.bytes[14..]).unwrap();
        whole = pool.process_sliced_packet(&sliced, (), ()).unwrap().or(whole);
    }
    let whole = whole.expect("all pieces are there");
    (whole.ip_number.0, whole.payload)
}

#[test]
fn each_kind_carries_what_was_received_bit_for_bit() {
    for kind in KINDS {
        let mut world = world_of(kind, &[[10, 0, 0, 5]], 1500);
        for payload in [0, 1, 1400] {
            let frame = if payload == 0 {
                Tcp::syn(CLIENT, VIP).frame()
            } else {
                Tcp::data(CLIENT, VIP, 0, &vec![7; payload]).frame()
            };
            let outcome = world.receive(&frame);
            let sent = only(&outcome);
            assert_eq!(sent[..14], LINK_HEADER);
            let out = decapsulate_with(&sent[14..], Some(PORT)).unwrap();
            assert_eq!(out.inner, packet(&frame), "{kind:?}");
            assert!(out.outer.dont_fragment);
        }
        assert!(world.counters.ledger_balances());
    }
}

/// A datagram that may be fragmented: the outer packet is cut, and comes together again. One that may
/// not is answered with what is left beside the headers of its kind.
#[test]
fn each_kind_leaves_room_for_its_own_headers() {
    for kind in KINDS {
        let overhead = 20 + u16::try_from(kind.len()).unwrap();
        let mut world = world_of(kind, &[[10, 0, 0, 5]], 1000);
        let told = |world: &mut World, payload: u16| {
            let frame = Tcp::data(CLIENT, VIP, 0, &vec![7; payload.into()]).frame();
            let outcome = world.receive(&frame);
            match outcome.verdict {
                Verdict::Forward { .. } => None,
                Verdict::Reply { .. } => {
                    let icmp = &outcome.outputs[0].bytes[14 + 20..];
                    assert_eq!(icmp[..2], [3, 4]);
                    Some(u16::from_be_bytes([icmp[6], icmp[7]]))
                }
                Verdict::Fragmented
                | Verdict::Pass
                | Verdict::Hold
                | Verdict::HandedOver
                | Verdict::Drop(_) => {
                    panic!("{:?}", outcome.verdict)
                }
            }
        };
        world.receive(&Tcp::syn(CLIENT, VIP).frame());
        let fits = 1000 - overhead - 40;
        assert_eq!(told(&mut world, fits), None, "{kind:?}");
        assert_eq!(told(&mut world, fits + 1), Some(1000 - overhead), "{kind:?}");

        let datagram = udp(CLIENT, VIP, &[9; 1200]);
        let outcome = world.receive(&may_be_fragmented(&datagram));
        assert_eq!(outcome.verdict, Verdict::Fragmented, "{kind:?}");
        assert!(outcome.outputs.iter().all(|piece| piece.bytes.len() <= 14 + 1000));
        let (protocol, payload) = reassembled(&outcome);
        assert_eq!(protocol, kind.protocol(adit_tunnel::Family::V4));
        assert_eq!(payload[kind.len()..], *packet(&may_be_fragmented(&datagram)));
        assert!(world.counters.ledger_balances());
    }
}

/// The frame with DF cleared.
fn may_be_fragmented(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[14 + 6] &= !0x40;
    frame[14 + 10..14 + 12].fill(0);
    let sum = adit_tunnel::checksum::ipv4_header_checksum(&frame[14..34]);
    frame[14 + 10..14 + 12].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn a_narrow_hop_is_heard_of_whatever_the_headers() {
    for kind in KINDS {
        for quoted in [28, 548] {
            let mut world = world_of(kind, &[[10, 0, 0, 5], [10, 0, 0, 6], [10, 0, 0, 7]], 1500);
            world.receive(&Tcp::syn(CLIENT, VIP).frame());
            let outcome = world.receive(&Tcp::data(CLIENT, VIP, 0, &[7; 1400]).frame());
            let outer = only(&outcome)[14..].to_vec();
            let error = fragmentation_needed(&outer, quoted, 1400);
            let heard = world.receive_with(Source::OuterError, &error, SendResult::Sent).verdict;
            assert_eq!(heard, Verdict::Pass);
            assert!(
                matches!(world.shell.events[..], [Event::PathMtu { mtu: 1400, .. }]),
                "{kind:?}, {quoted} bytes quoted"
            );
            // One bit of the identification is wrong.
            let mut forged = outer;
            forged[5] ^= 1;
            let error = fragmentation_needed(&forged, quoted, 1300);
            let heard = world.receive_with(Source::OuterError, &error, SendResult::Sent).verdict;
            assert_eq!(heard, Verdict::Drop(DropReason::ForgedError), "{kind:?}");
        }
    }
}

#[test]
fn flows_spread_over_sources_and_ports_and_each_keeps_its_own() {
    let sources = [[10, 0, 0, 5], [10, 0, 0, 6], [10, 0, 0, 7]];
    for kind in [KINDS[0], KINDS[3]] {
        let mut world = world_of(kind, &sources, 1500);
        let mut seen = BTreeSet::new();
        let mut ports = BTreeSet::new();
        for port in 40_000..40_100 {
            let client = format!("203.0.113.7:{port}");
            let mut of_flow = BTreeSet::new();
            let data = Tcp::data(&client, VIP, 0, b"x").frame();
            for frame in [Tcp::syn(&client, VIP).frame(), data.clone(), data] {
                let outcome = world.receive(&frame);
                let outer = &only(&outcome)[14..];
                let source: [u8; 4] = outer[12..16].try_into().unwrap();
                let udp_source = u16::from_be_bytes([outer[20], outer[21]]);
                let udp_source = if kind == KINDS[0] { 0 } else { udp_source };
                of_flow.insert((source, udp_source));
            }
            assert_eq!(of_flow.len(), 1, "a flow changed its source or port: {of_flow:?}");
            let (source, udp_source) = of_flow.pop_first().unwrap();
            seen.insert(source);
            ports.insert(udp_source);
        }
        assert_eq!(seen, BTreeSet::from(sources));
        if kind != KINDS[0] {
            // 100 of 16 384: two that share a port are to be expected now and then, five are not.
            assert!(ports.len() > 95, "{} ports for 100 flows", ports.len());
            assert!(ports.iter().all(|port| *port >= 49_152), "{ports:?}");
        }
    }
}

#[test]
fn direct_mode_rewrites_the_frame_and_nothing_in_it() {
    let mut world = direct(1500);
    for frame in [Tcp::syn(CLIENT, VIP).frame(), Tcp::data(CLIENT, VIP, 0, &[7; 1460]).frame()] {
        let outcome = world.receive(&frame);
        let sent = only(&outcome);
        assert_eq!(sent[..14], LINK_HEADER);
        assert_eq!(sent[14..], frame[14..], "all of 1500 bytes fit: there is no overhead");
    }
    assert!(world.counters.ledger_balances());
}

#[test]
fn direct_mode_fragments_as_a_router_does() {
    let mut world = direct(1000);
    let datagram = may_be_fragmented(&udp(CLIENT, VIP, &[9; 1200]));
    let outcome = world.receive(&datagram);
    assert_eq!(outcome.verdict, Verdict::Fragmented);
    for piece in &outcome.outputs {
        assert_eq!(piece.bytes[..14], LINK_HEADER);
        assert!(piece.bytes.len() <= 14 + 1000);
        // The datagram's own identification, and its own ends.
        assert_eq!(piece.bytes[18..20], datagram[18..20]);
        assert_eq!(piece.bytes[26..34], datagram[26..34]);
    }
    assert_eq!(reassembled(&outcome), (17, datagram[34..].to_vec()));

    // With DF its sender is told, even where services clear it on outer headers: it is his.
    for entry in world.snapshot.destinations.iter_mut().flatten() {
        entry.df = adit::dataplane::service::DfPolicy::Clear;
    }
    world.receive(&Tcp::syn(CLIENT, VIP).frame());
    let outcome = world.receive(&Tcp::data(CLIENT, VIP, 0, &[7; 1200]).frame());
    assert!(matches!(outcome.verdict, Verdict::Reply { .. }), "{:?}", outcome.verdict);
    let icmp = &outcome.outputs[0].bytes[14 + 20..];
    assert_eq!((&icmp[..2], &icmp[6..8]), (&[3, 4][..], &1000_u16.to_be_bytes()[..]));

    // What was cut already is not cut again here.
    let pieces =
        world::frames::fragments(&may_be_fragmented(&udp(CLIENT, VIP, &[9; 2600])), 1400, 7);
    let verdicts: Vec<_> = pieces.iter().map(|piece| world.receive(piece).verdict).collect();
    assert_eq!(verdicts[0], Verdict::Drop(DropReason::PacketTooBig), "{verdicts:?}");
    assert!(world.counters.ledger_balances());
}

#[test]
fn a_direct_way_that_is_lost_drops_by_name() {
    let mut world = direct(1500);
    let reals = world.snapshot.reals.iter();
    let lost = reals.map(|(_, real)| Some(RealServer { link: Link::None, ..real.clone() }));
    world.snapshot.reals = lost.collect::<Vec<_>>().into();
    let outcome = world.receive(&Tcp::syn(CLIENT, VIP).frame());
    assert_eq!(outcome.verdict, Verdict::Drop(DropReason::NoEgress));
}
