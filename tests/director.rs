//! The core from outside: frames in, verdicts and bytes out.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod world;

use std::{collections::HashSet, net::IpAddr, time::Duration};

use adit::dataplane::{
    ids::RealId,
    scheduler::{Member, SchedulerKind},
    service::{DfPolicy, Ports, Protocol},
    snapshot::{Link, RealServer},
    verdict::{Account, DropReason, Event, ReplyTo, SendResult, Source, Verdict},
};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use world::{ServiceSpec, World, frames, frames::Tcp, snapshot};

const CLIENT: &str = "192.0.2.7:40000";
const VIP: &str = "198.51.100.10:5432";

fn world(scheduler: SchedulerKind) -> World {
    World::new(snapshot(vec![ServiceSpec::orders(scheduler)]), 1000)
}

/// The real server and the inner packet of a wrapped frame.
fn unwrap_ipip(bytes: &[u8]) -> (IpAddr, Vec<u8>) {
    let outer = adit_tunnel::decapsulate(&bytes[14..]).unwrap();
    (outer.outer.destination, outer.inner.to_vec())
}

fn real_of(world: &mut World, frame: &[u8]) -> Option<IpAddr> {
    let outcome = world.receive(frame);
    matches!(outcome.verdict, Verdict::Forward { .. })
        .then(|| unwrap_ipip(&outcome.outputs[0].bytes).0)
}

fn assert_ledger(world: &World) {
    assert!(world.counters.ledger_balances(), "{:?}", world.counters);
}

#[test]
fn a_session_reaches_one_real_server_bit_for_bit() {
    let mut world = world(SchedulerKind::Maglev);
    let syn = Tcp::syn(CLIENT, VIP).frame();
    let outcome = world.receive(&syn);
    assert_eq!(outcome.outputs[0].bytes[..14], world::LINK_HEADER);
    let (real, inner) = unwrap_ipip(&outcome.outputs[0].bytes);
    assert_eq!(inner, syn[14..], "the inner packet is not changed");
    for offset in 0..20 {
        world.advance(Duration::from_millis(100));
        let frame = Tcp::data(CLIENT, VIP, offset * 5, b"query").frame();
        let outcome = world.receive(&frame);
        let (same, inner) = unwrap_ipip(&outcome.outputs[0].bytes);
        assert_eq!((same, inner.as_slice()), (real, &frame[14..]));
    }
    let counters = &world.counters;
    let destination = counters.traffic.iter().position(|d| d.packets.get() > 0).unwrap();
    let destination = &counters.destinations[destination];
    assert_eq!(destination.read().connections, 1);
    assert_eq!(destination.read().active, 1, "established");
    assert_ledger(&world);
}

#[test]
fn a_known_flow_stays_when_its_server_takes_no_new_flows() {
    for scheduler in [SchedulerKind::Maglev, SchedulerKind::Wrr] {
        let mut world = world(scheduler);
        let real = real_of(&mut world, &Tcp::syn(CLIENT, VIP).frame()).unwrap();
        let mut spec = ServiceSpec::orders(scheduler);
        for member in &mut spec.members {
            member.draining = member.address == real;
        }
        world.snapshot = snapshot(vec![spec]);
        let again = real_of(&mut world, &Tcp::data(CLIENT, VIP, 0, b"x").frame());
        assert_eq!(again, Some(real));
        for port in 41000..41050 {
            let client = format!("192.0.2.7:{port}");
            let other = real_of(&mut world, &Tcp::syn(&client, VIP).frame()).unwrap();
            assert_ne!(other, real, "a draining server gets no new flow");
        }
    }
}

#[test]
fn an_unknown_segment_is_guessed_under_a_hash_and_reset_otherwise() {
    let data = Tcp::data(CLIENT, VIP, 0, b"x").frame();
    let mut hash = world(SchedulerKind::Maglev);
    let placed = real_of(&mut hash, &Tcp::syn(CLIENT, VIP).frame());
    let mut fresh = world(SchedulerKind::Maglev);
    assert_eq!(real_of(&mut fresh, &data), placed);
    assert_eq!(fresh.counters.worker.rederived.get(), 1);

    let mut wrr = world(SchedulerKind::Wrr);
    let outcome = wrr.receive(&data);
    assert!(matches!(outcome.verdict, Verdict::Reply { to: ReplyTo::Tap, .. }));
    let reply = SlicedPacket::from_ethernet(&outcome.outputs[0].bytes).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = reply.transport else { panic!("a TCP segment") };
    assert!(tcp.rst());
    assert_eq!(tcp.sequence_number(), 5000, "the sequence the client expects");
    assert_eq!(wrr.counters.worker.rederived.get(), 0);
    assert_ledger(&wrr);
}

/// What a host sends on every interface by itself is no drop: an idle director shows none.
#[test]
fn multicast_is_left_to_the_host() {
    for group in ["224.0.0.251:5353", "[ff02::fb]:5353"] {
        let mut world = world(SchedulerKind::Maglev);
        let host = if group.starts_with('[') { "[fe80::1]:5353" } else { "10.2.0.1:5353" };
        let outcome = world.receive(&frames::udp(host, group, b"x"));
        assert_eq!(outcome.verdict, Verdict::Pass, "{group}");
        assert_ledger(&world);
    }
}

/// Every refusal of a well-formed or broken frame, by its reason.
#[test]
fn refusals_have_names() {
    let cases: Vec<(&str, Vec<u8>, DropReason)> = vec![
        ("no IP", [vec![0; 12], vec![0x88, 0xcc], vec![0; 40]].concat(), DropReason::NotIp),
        ("short", vec![0; 9], DropReason::Truncated),
        ("other VIP", Tcp::syn(CLIENT, "198.51.100.99:5432").frame(), DropReason::NotVip),
        ("other port", Tcp::syn(CLIENT, "198.51.100.10:22").frame(), DropReason::NoService),
        ("udp", frames::udp(CLIENT, VIP, b"x"), DropReason::NoService),
        ("loopback", Tcp::syn("127.0.0.1:1", VIP).frame(), DropReason::BadSource),
        ("VIP as source", Tcp::syn("198.51.100.10:1", VIP).frame(), DropReason::BadSource),
        ("exit as source", Tcp::syn("10.20.0.11:7", VIP).frame(), DropReason::BadSource),
        ("cut", Tcp::syn(CLIENT, VIP).frame()[..40].to_vec(), DropReason::Truncated),
        (
            "SYN and ACK",
            Tcp { acknowledgement: Some(1), ..Tcp::syn(CLIENT, VIP) }.frame(),
            DropReason::NoFlow,
        ),
    ];
    for (name, frame, reason) in cases {
        let mut world = world(SchedulerKind::Maglev);
        if reason == DropReason::BadSource && name == "exit as source" {
            // Only when it is placed on itself does the packet go in a circle.
            let mut spec = ServiceSpec::orders(SchedulerKind::Maglev);
            spec.members.truncate(1);
            world = World::new(snapshot(vec![spec]), 100);
        }
        let outcome = world.receive(&frame);
        assert_eq!(outcome.verdict, Verdict::Drop(reason), "{name}");
        assert_eq!(world.counters.dropped(reason).get(), 1, "{name}");
        assert_ledger(&world);
    }
}

#[test]
fn nobody_eligible_is_a_named_drop() {
    let mut spec = ServiceSpec::orders(SchedulerKind::Maglev);
    for member in &mut spec.members {
        member.down = true;
    }
    let mut world = World::new(snapshot(vec![spec]), 100);
    let outcome = world.receive(&Tcp::syn(CLIENT, VIP).frame());
    assert_eq!(outcome.verdict, Verdict::Drop(DropReason::NoRealServer));
}

#[test]
fn services_are_found_by_port_then_range_then_any() {
    let with = |ports, address: &str| ServiceSpec {
        ports,
        members: vec![Member::up(address.parse().unwrap(), 1)],
        ..ServiceSpec::orders(SchedulerKind::Maglev)
    };
    let mut world = World::new(
        snapshot(vec![
            with(Ports::Any, "10.1.0.3"),
            with(Ports::Range(5000..=6000), "10.1.0.2"),
            with(Ports::List([5432, 5433].into()), "10.1.0.1"),
            ServiceSpec { protocol: Protocol::Udp, ..with(Ports::Any, "10.1.0.4") },
        ]),
        100,
    );
    for (port, real) in
        [(5432, "10.1.0.1"), (5433, "10.1.0.1"), (5000, "10.1.0.2"), (7, "10.1.0.3")]
    {
        let vip = format!("198.51.100.10:{port}");
        let found = real_of(&mut world, &Tcp::syn(CLIENT, &vip).frame());
        assert_eq!(found, Some(real.parse().unwrap()), "port {port}");
    }
    let found = real_of(&mut world, &frames::udp(CLIENT, VIP, b"x"));
    assert_eq!(found, Some("10.1.0.4".parse().unwrap()));
}

#[test]
fn a_packet_too_big_is_answered_with_the_inner_mtu() {
    let mut world = world(SchedulerKind::Maglev);
    let payload = vec![7; 1460];
    let frame = Tcp::data(CLIENT, VIP, 0, &payload).frame();
    let outcome = world.receive(&frame);
    assert!(matches!(outcome.verdict, Verdict::Reply { .. }), "{:?}", outcome.verdict);
    let reply = SlicedPacket::from_ethernet(&outcome.outputs[0].bytes).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &reply.net else { panic!("IPv4") };
    assert_eq!(ip.header().source_addr().to_string(), "198.51.100.10", "from the VIP");
    let icmp = &outcome.outputs[0].bytes[34..];
    assert_eq!((icmp[0], icmp[1]), (3, 4));
    assert_eq!(u16::from_be_bytes([icmp[6], icmp[7]]), 1480, "1500 less the outer header");
    assert_ledger(&world);
}

#[test]
fn a_packet_that_may_be_fragmented_is_fragmented_outside() {
    for df in [DfPolicy::Copy, DfPolicy::Clear] {
        let spec = ServiceSpec { df, ..ServiceSpec::orders(SchedulerKind::Maglev) };
        let mut world = World::new(snapshot(vec![spec]), 100);
        let payload: Vec<u8> = (0..1460u16).map(|n| n as u8).collect();
        let dont_fragment = df == DfPolicy::Clear;
        let frame = Tcp { dont_fragment, ..Tcp::data(CLIENT, VIP, 0, &payload) }.frame();
        let outcome = world.receive(&frame);
        assert_eq!(outcome.verdict, Verdict::Fragmented);
        assert_eq!(outcome.outputs.len(), 2);
        assert_eq!(outcome.outputs[0].account, Account::Extra);
        assert_eq!(outcome.outputs[1].account, Account::Forward);
        let mut joined = Vec::new();
        for output in &outcome.outputs {
            assert!(output.bytes.len() <= 1514);
            assert_eq!(output.bytes[14 + 9], 4, "IPIP");
            joined.extend_from_slice(&output.bytes[34..]);
        }
        assert_eq!(joined, frame[14..], "the pieces make the inner packet");
        assert_eq!(world.counters.worker.forwarded.get(), 1);
        assert_eq!(world.counters.worker.output_packets.get(), 2);
        assert_ledger(&world);
    }
}

#[test]
fn echo_is_answered_from_the_vip() {
    let mut world = world(SchedulerKind::Maglev);
    let outcome = world.receive(&frames::echo_request("192.0.2.7", "198.51.100.10"));
    assert!(matches!(outcome.verdict, Verdict::Reply { to: ReplyTo::Tap, .. }));
    let bytes = &outcome.outputs[0].bytes;
    assert_eq!(bytes[..6], world::HOST_MAC);
    assert_eq!(bytes[6..12], world::TAP_MAC);
    let reply = SlicedPacket::from_ethernet(bytes).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &reply.net else { panic!("IPv4") };
    assert_eq!(ip.header().source_addr().to_string(), "198.51.100.10");
    assert_eq!(bytes[34], 0, "echo reply");
    assert_ledger(&world);
}

#[test]
fn an_error_of_the_clients_path_goes_to_the_flows_owner() {
    let mut world = world(SchedulerKind::Maglev);
    let real = real_of(&mut world, &Tcp::syn(CLIENT, VIP).frame()).unwrap();
    // Quotes the server's SYN-ACK, VIP to client, cut to 8 bytes of TCP.
    let (client, vip) = frames::ends(CLIENT, VIP);
    let mut quoted = Vec::new();
    frames::ip(vip.ip(), client.ip(), 60, true)
        .tcp(5432, 40000, 9, 1000)
        .write(&mut quoted, &[])
        .unwrap();
    let error = frames::destination_unreachable("203.0.113.1", "198.51.100.10", &quoted[14..42]);
    let outcome = world.receive(&error);
    assert!(matches!(outcome.verdict, Verdict::Forward { .. }), "{:?}", outcome.verdict);
    assert_eq!(unwrap_ipip(&outcome.outputs[0].bytes), (real, error[14..].to_vec()));

    let mut foreign = quoted[14..42].to_vec();
    foreign[22..24].copy_from_slice(&1u16.to_be_bytes()); // another client port
    let error = frames::destination_unreachable("203.0.113.1", "198.51.100.10", &foreign);
    assert_eq!(world.receive(&error).verdict, Verdict::Drop(DropReason::IcmpNoFlow));
    assert_ledger(&world);
}

/// While the table is full of established flows, others are forwarded by hash; errors about them
/// find the same way.
#[test]
fn an_error_about_an_untracked_flow_goes_where_its_packets_go() {
    for scheduler in [SchedulerKind::Maglev, SchedulerKind::Wrr] {
        let mut world = World::new(snapshot(vec![ServiceSpec::orders(scheduler)]), 4);
        for offset in 0..4 {
            for port in 1..=4 {
                let client = format!("192.0.2.99:{port}");
                let segment = Tcp::data(&client, VIP, offset, b"x");
                let begin = Tcp::syn(&client, VIP);
                world.receive(&if offset == 0 { begin.frame() } else { segment.frame() });
            }
            world.advance(Duration::from_millis(600));
        }
        let (client, vip) = frames::ends(CLIENT, VIP);
        let mut quoted = Vec::new();
        let reply = frames::ip(vip.ip(), client.ip(), 60, true).tcp(5432, client.port(), 9, 1000);
        reply.write(&mut quoted, &[]).unwrap();
        let error =
            frames::destination_unreachable("203.0.113.1", "198.51.100.10", &quoted[14..42]);
        let owner = real_of(&mut world, &Tcp::data(CLIENT, VIP, 0, b"x").frame());
        assert_eq!(owner.is_some(), scheduler == SchedulerKind::Maglev);
        assert_eq!(world.counters.worker.untracked.get(), u64::from(owner.is_some()));
        let outcome = world.receive(&error);
        let reached = outcome.outputs.first().map(|output| unwrap_ipip(&output.bytes).0);
        assert_eq!(reached, owner);
        assert_ledger(&world);
    }
}

#[test]
fn sends_that_fail_are_counted_as_drops() {
    for (result, reason) in [
        (SendResult::QueueFull, DropReason::EgressFull),
        (SendResult::Failed, DropReason::EgressError),
    ] {
        let mut world = world(SchedulerKind::Maglev);
        let _ = world.receive_with(Source::Tap, &Tcp::syn(CLIENT, VIP).frame(), result);
        assert_eq!(world.counters.dropped(reason).get(), 1);
        assert_eq!(world.counters.worker.forwarded.get(), 0);
        assert_ledger(&world);
    }
}

#[test]
fn persistence_is_announced_when_the_flow_is_established_and_not_before() {
    let spec = ServiceSpec::orders(SchedulerKind::Maglev).persistent(600);
    let mut world = World::new(snapshot(vec![spec]), 100);
    let _ = world.receive(&Tcp::syn(CLIENT, VIP).frame());
    for offset in 0..3 {
        world.advance(Duration::from_millis(300));
        let _ = world.receive(&Tcp::data(CLIENT, VIP, offset, b"x").frame());
        assert!(world.shell.events.is_empty());
    }
    world.advance(Duration::from_millis(300));
    let _ = world.receive(&Tcp::data(CLIENT, VIP, 3, b"x").frame());
    assert!(
        matches!(world.shell.events[..], [Event::Established { .. }]),
        "{:?}",
        world.shell.events
    );
}

/// A UDP service whose paths are wide enough for the fragments that these tests send.
fn udp_world() -> World {
    let spec =
        ServiceSpec { protocol: Protocol::Udp, ..ServiceSpec::orders(SchedulerKind::Maglev) };
    World::new(snapshot(vec![spec]), 100)
}

#[test]
fn fragments_follow_their_first_in_any_order() {
    let payload: Vec<u8> = (0..8000u16).map(|n| n as u8).collect();
    let pieces = frames::fragments(&frames::udp(CLIENT, VIP, &payload), 1400, 9);
    let mut reversed = pieces.clone();
    reversed.reverse();
    for order in [pieces.clone(), reversed] {
        let mut world = udp_world();
        let mut inner = Vec::new();
        for piece in &order {
            for output in world.receive(piece).outputs {
                inner.push(unwrap_ipip(&output.bytes));
            }
        }
        assert_eq!(inner.len(), pieces.len());
        assert!(inner.iter().all(|(real, _)| *real == inner[0].0), "one real server");
        for piece in &pieces {
            assert!(inner.iter().any(|(_, packet)| packet == &piece[14..]), "bit for bit");
        }
        assert_eq!(world.counters.worker.held.get(), 0);
        assert_eq!(world.counters.worker.forwarded.get(), pieces.len() as u64);
        assert_ledger(&world);
    }
}

#[test]
fn held_fragments_that_do_not_fit_are_fragmented_outside() {
    let payload = vec![3; 4000];
    let mut pieces = frames::fragments(&frames::udp(CLIENT, VIP, &payload), 1500, 9);
    pieces.reverse();
    let mut world = udp_world();
    let outputs: Vec<_> = pieces.iter().flat_map(|piece| world.receive(piece).outputs).collect();
    assert!(outputs.len() > pieces.len());
    assert!(outputs.iter().all(|output| output.bytes.len() <= 1514));
    assert_eq!(world.counters.worker.forwarded.get(), pieces.len() as u64);
    assert_ledger(&world);
}

#[test]
fn held_fragments_are_let_go_after_their_time() {
    let mut world = udp_world();
    let pieces = frames::fragments(&frames::udp(CLIENT, VIP, &[3; 4000]), 1400, 9);
    assert_eq!(world.receive(&pieces[1]).verdict, Verdict::Hold);
    assert_ledger(&world);
    world.advance(Duration::from_secs(31));
    world.tick();
    assert_eq!(world.counters.worker.held.get(), 0);
    assert_eq!(world.counters.dropped(DropReason::FragmentTimeout).get(), 1);
    assert_ledger(&world);
}

/// Under round robin, so that only persistence brings a client back.
#[test]
fn a_persistent_client_comes_back_unless_its_server_takes_no_new_flows() {
    let spec = || ServiceSpec::orders(SchedulerKind::Wrr).persistent(600);
    let mut world = World::new(snapshot(vec![spec()]), 1000);
    let kept = real_of(&mut world, &Tcp::syn(CLIENT, VIP).frame()).unwrap();
    for offset in 0..5 {
        world.advance(Duration::from_millis(300));
        let _ = world.receive(&Tcp::data(CLIENT, VIP, offset, b"x").frame());
    }
    world.remember_client();
    let reals_of = |world: &mut World, client: &str| -> HashSet<IpAddr> {
        let syn = |port| Tcp::syn(&format!("{client}:{port}"), VIP).frame();
        (41_000..41_010).map(|port| real_of(world, &syn(port)).unwrap()).collect()
    };
    assert_eq!(reals_of(&mut world, "192.0.2.7"), HashSet::from([kept]));
    assert_eq!(world.counters.worker.persisted.get(), 10);
    assert_eq!(reals_of(&mut world, "192.0.2.8").len(), 2, "another client");
    // Draining: the flows it has still find it, also those without an entry; new ones do not.
    let mut draining = spec();
    draining.members.iter_mut().for_each(|member| member.draining = member.address == kept);
    world.snapshot = snapshot(vec![draining]);
    let unknown = Tcp::data("192.0.2.7:42000", VIP, 0, b"x").frame();
    assert_eq!(real_of(&mut world, &unknown), Some(kept));
    let worker = world.counters.worker.read();
    assert_eq!((worker.persisted, worker.rederived), (11, 0), "remembered, not guessed");
    let syn = Tcp::syn("192.0.2.7:42001", VIP).frame();
    assert_ne!(real_of(&mut world, &syn), Some(kept));
    // Back in service, and the entry over.
    world.snapshot = snapshot(vec![spec()]);
    world.advance(Duration::from_secs(601));
    assert_eq!(reals_of(&mut world, "192.0.2.7").len(), 2);
    assert_ledger(&world);
}

#[test]
fn looking_ahead_decides_nothing() {
    let mut world = world(SchedulerKind::Maglev);
    let known = Tcp::syn(CLIENT, VIP).frame();
    let unknown = Tcp::syn("192.0.2.8:1", VIP).frame();
    world.receive(&known);
    let before = world.counters.worker.read();
    let cut = (0..known.len()).map(|length| &known[..length]);
    for frame in cut.chain([&known[..], &unknown[..], &[0xff; 64][..]]) {
        world.director.ahead(&world.snapshot, frame);
    }
    assert_eq!(world.counters.worker.read(), before);
    assert_ledger(&world);
    assert!(real_of(&mut world, &unknown).is_some());
    assert_ledger(&world);
}

#[test]
fn a_route_that_is_gone_says_nothing_of_its_mtu() {
    let mut world = world(SchedulerKind::Maglev);
    world.receive(&Tcp::syn(CLIENT, VIP).frame());
    let full_size = Tcp::data(CLIENT, VIP, 0, &[0; 1400]).frame();
    let lost = |id| {
        let real = world.snapshot.real(RealId(id)).cloned()?;
        Some(RealServer { link: Link::None, link_mtu: 1280, ..real })
    };
    world.snapshot.reals = [0, 1].map(lost).to_vec().into();
    let outcome = world.receive(&full_size);
    assert_eq!(outcome.verdict, Verdict::Drop(DropReason::NoEgress));
    assert_eq!(world.counters.worker.too_big_sent.get(), 0);
    assert_ledger(&world);
}

#[test]
fn resets_that_are_not_due_leave_the_others_theirs() {
    let mut world = world(SchedulerKind::Wrr);
    let mut stray = Tcp::data(CLIENT, VIP, 0, b"x");
    let mut reset = Tcp::data("192.0.2.7:40001", VIP, 0, b"");
    (reset.rst, reset.acknowledgement) = (true, None);
    for _ in 0..1000 {
        let outcome = world.receive(&reset.frame());
        assert_eq!(outcome.verdict, Verdict::Drop(DropReason::NoFlow));
    }
    stray.payload = b"y";
    assert!(matches!(world.receive(&stray.frame()).verdict, Verdict::Reply { .. }));
    assert_eq!(world.counters.worker.resets_sent.get(), 1);
}
