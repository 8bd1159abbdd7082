//! The director's own health checks in the core: pinned to one real server, and no part of the traffic.

#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use std::{net::IpAddr, time::Duration};

use adit::dataplane::{
    counters::{Counters, DestinationGauges, TrafficReading},
    ids::{DestinationId, VipId},
    packet,
    probe::{HOP_LIMIT, Probes},
    scheduler::SchedulerKind,
    verdict::{DropReason, SendResult, Source, Verdict},
};
use world::{
    ServiceSpec, World,
    frames::{Tcp, destination_unreachable, fragmentation_needed},
    snapshot,
};

const VIP: &str = "198.51.100.10:5432";
/// Address of the director's host.
const SOURCE: &str = "10.0.0.5";
const FIRST: u16 = 61_000;
const EACH: u16 = 4;

/// Checks of both real servers of the one service, in the order of their addresses.
fn probes() -> Probes {
    let source = packet::address(SOURCE.parse().unwrap());
    let blocks = vec![Some(DestinationId(0)), Some(DestinationId(1))];
    Probes::new((FIRST, EACH), vec![source], [((VipId(0), 5432), blocks)])
}

fn world(change: impl FnOnce(&mut ServiceSpec)) -> World {
    let mut spec = ServiceSpec::orders(SchedulerKind::Maglev);
    change(&mut spec);
    let mut world = World::new(snapshot(vec![spec]), 1000);
    world.snapshot.probes = probes();
    world
}

/// A check's SYN from the block of a real server.
fn check(block: u16, hop_limit: u8) -> Vec<u8> {
    let client = format!("{SOURCE}:{}", FIRST + block * EACH);
    Tcp { hop_limit, ..Tcp::syn(&client, VIP) }.frame()
}

fn server(world: &mut World, frame: &[u8]) -> Result<IpAddr, Verdict> {
    let outcome = world.receive(frame);
    let Verdict::Forward { .. } = outcome.verdict else { return Err(outcome.verdict) };
    Ok(adit_tunnel::decapsulate(&outcome.outputs[0].bytes[14..]).unwrap().outer.destination)
}

/// What moves when a flow is placed.
fn placed(world: &World) -> (u64, u64, [u64; 3]) {
    let worker = world.counters.worker.read();
    let connections = world.counters.destinations.iter().map(|d| d.connections.get()).sum();
    let flows = (0..2).map(|id| world.counters.flows_to(DestinationId(id))).sum();
    (connections, flows, [worker.scheduled, worker.persisted, worker.rederived])
}

#[test]
fn a_check_reaches_its_real_server_whatever_is_thought_of_it() {
    type Change = fn(&mut ServiceSpec);
    let states: [(&str, Change); 5] = [
        ("up", |_| {}),
        ("down", |spec| spec.members.iter_mut().for_each(|m| m.down = true)),
        ("draining", |spec| spec.members.iter_mut().for_each(|m| m.draining = true)),
        ("no weight left", |spec| spec.members.iter_mut().for_each(|m| m.effective_weight = 0)),
        ("drained", |spec| spec.members.iter_mut().for_each(|m| m.weight = 0)),
    ];
    for (state, change) in states {
        let mut world = world(change);
        for (block, expected) in [(0, "10.20.0.11"), (1, "10.30.0.21"), (0, "10.20.0.11")] {
            let reached = server(&mut world, &check(block, HOP_LIMIT)).unwrap();
            assert_eq!(reached.to_string(), expected, "{state}");
        }
        assert_eq!(placed(&world), (0, 0, [0; 3]), "{state}: it is no flow");
        let Counters { destinations, traffic, .. } = &*world.counters;
        assert!(destinations.iter().all(|d| d.read() == DestinationGauges::default()), "{state}");
        assert!(traffic.iter().all(|t| t.read() == TrafficReading::default()), "{state}");
        let worker = world.counters.worker.read();
        assert_eq!((worker.probe_packets, worker.forwarded, worker.received_bytes), (3, 3, 0));
        assert!(world.counters.ledger_balances(), "{state}");
    }
}

#[test]
fn a_check_goes_past_a_flow_of_the_same_name() {
    let mut world = world(|_| {});
    for (block, expected) in [(0, "10.20.0.11"), (1, "10.30.0.21")] {
        // Somebody's packet with the same addresses and ports, that came over a router.
        let placed = server(&mut world, &check(block, HOP_LIMIT - 1)).unwrap();
        let reached = server(&mut world, &check(block, HOP_LIMIT)).unwrap();
        assert_eq!(reached.to_string(), expected, "the flow is at {placed}");
    }
    assert_eq!(placed(&world).0, 2, "a client's, both of them");
}

#[test]
fn nobody_else_can_use_a_pin() {
    let mut world = world(|spec| {
        spec.members[0].down = true;
        spec.members[1].draining = true;
    });
    for hop_limit in [1, 64, 128, 254] {
        let refused = server(&mut world, &check(0, hop_limit)).unwrap_err();
        assert_eq!(refused, Verdict::Drop(DropReason::NoRealServer), "hop limit {hop_limit}");
    }
    let stranger = Tcp { hop_limit: HOP_LIMIT, ..Tcp::syn("192.0.2.7:61000", VIP) }.frame();
    let refused = server(&mut world, &stranger).unwrap_err();
    assert_eq!(refused, Verdict::Drop(DropReason::NoRealServer));
    assert_eq!(world.counters.worker.probe_packets.get(), 0);
}

#[test]
fn what_ends_a_half_open_check_finds_it() {
    let mut world = world(|spec| spec.members.iter_mut().for_each(|m| m.down = true));
    for (block, expected) in [(0u16, "10.20.0.11"), (1, "10.30.0.21")] {
        let client = format!("{SOURCE}:{}", FIRST + block * EACH);
        // As the kernel answers what belongs to no socket.
        let reset = Tcp { rst: true, syn: false, ..Tcp::syn(&client, VIP) }.frame();
        assert_eq!(server(&mut world, &reset).unwrap().to_string(), expected);
    }
    assert_eq!(placed(&world), (0, 0, [0; 3]));
    assert_eq!(world.counters.worker.probe_packets.get(), 2);
}

#[test]
fn a_check_of_what_is_not_checked_any_more_goes_nowhere() {
    let mut world = world(|_| {});
    let source = packet::address(SOURCE.parse().unwrap());
    let blocks = vec![None, Some(DestinationId(1))];
    world.snapshot.probes = Probes::new((FIRST, EACH), vec![source], [((VipId(0), 5432), blocks)]);
    let refused = server(&mut world, &check(0, HOP_LIMIT)).unwrap_err();
    assert_eq!(refused, Verdict::Drop(DropReason::StaleProbe));
    assert_eq!(placed(&world), (0, 0, [0; 3]));
    assert!(world.counters.ledger_balances());
}

#[test]
fn a_check_is_no_flow_to_expire_and_its_lost_sends_are_no_traffic() {
    let mut world = world(|_| {});
    world.receive_with(Source::Tap, &check(0, HOP_LIMIT), SendResult::QueueFull);
    world.advance(Duration::from_secs(3600));
    world.tick();
    assert_eq!(world.counters.dropped(DropReason::EgressFull).get(), 1);
    assert_eq!(placed(&world), (0, 0, [0; 3]));
    assert!(world.counters.ledger_balances());
}

#[test]
fn an_error_about_an_answer_to_a_check_reaches_who_answered() {
    let mut world = world(|_| {});
    for (block, expected) in [(0u16, "10.20.0.11"), (1, "10.30.0.21")] {
        let client = format!("{SOURCE}:{}", FIRST + block * EACH);
        let answer = Tcp::syn(VIP, &client).frame();
        let error = destination_unreachable("192.0.2.254", "198.51.100.10", &answer[14..]);
        assert_eq!(server(&mut world, &error).unwrap().to_string(), expected);
    }
    let stranger = Tcp::syn(VIP, &format!("192.0.2.7:{FIRST}")).frame();
    let error = destination_unreachable("192.0.2.254", "198.51.100.10", &stranger[14..]);
    let refused = server(&mut world, &error).unwrap_err();
    assert_eq!(refused, Verdict::Drop(DropReason::IcmpNoFlow));
    assert_eq!(placed(&world), (0, 0, [0; 3]));
    assert!(world.counters.ledger_balances());
}

/// A router's error about a check on its way through the tunnel: no attack, and where nothing proves
/// it nothing is learned.
#[test]
fn errors_about_checks_are_no_forgeries_and_teach_nothing() {
    let about = |client: &str, dont_fragment: bool, wrong: u8| {
        let frame = Tcp { hop_limit: HOP_LIMIT, ..Tcp::syn(client, VIP) }.frame();
        let outcome = world(|_| {}).receive(&frame);
        let mut outer = outcome.outputs[0].bytes[14..].to_vec();
        outer[5] ^= wrong;
        if !dont_fragment {
            // Such a packet has no cookie.
            outer[6] &= !0x40;
        }
        // A director that knows of no flow.
        let mut world = world(|_| {});
        let error = fragmentation_needed(&outer, 60, 1400);
        let heard = world.receive_with(Source::OuterError, &error, SendResult::Sent).verdict;
        assert!(world.counters.ledger_balances());
        (heard, world.counters.worker.path_mtu_updates.get())
    };
    let check = format!("{SOURCE}:{}", FIRST + EACH);
    let beside = format!("{SOURCE}:{}", FIRST + 2 * EACH);
    let forged = || Verdict::Drop(DropReason::ForgedError);
    assert_eq!(about(&check, false, 0), (Verdict::Pass, 0), "the kernel has its own copy");
    assert_eq!(about(&beside, false, 0), (forged(), 0), "no port of a check");
    assert_eq!(about("192.0.2.7:61000", false, 0), (forged(), 0), "not this host's address");
    // With a cookie it is believed as any is, or not.
    assert_eq!(about(&check, true, 0), (Verdict::Pass, 1));
    assert_eq!(about(&check, true, 1), (forged(), 0));
}
