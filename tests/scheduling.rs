//! Schedulers in the core: who gets a flow by the connections there are, and datagrams without one.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod world;

use std::{collections::HashSet, net::IpAddr, time::Duration};

use adit::dataplane::{
    scheduler::{Member, SchedulerFlag, SchedulerKind, Threshold},
    service::Protocol,
    verdict::{DropReason, ReplyTo, Verdict},
};
use world::{ServiceSpec, World, frames, frames::Tcp, snapshot};

const VIP: &str = "198.51.100.10:5432";

fn member(last: u8, weight: u32) -> Member {
    Member::up(IpAddr::from([10, 20, 0, last]), weight)
}

fn world(scheduler: SchedulerKind, members: Vec<Member>) -> World {
    World::new(snapshot(vec![ServiceSpec { members, ..ServiceSpec::orders(scheduler) }]), 1000)
}

fn datagrams(scheduler: SchedulerKind, one_packet: bool) -> ServiceSpec {
    ServiceSpec { protocol: Protocol::Udp, one_packet, ..ServiceSpec::orders(scheduler) }
}

/// Last byte of the real server's address, if the frame is forwarded.
fn server(world: &mut World, frame: &[u8]) -> Option<u8> {
    let outcome = world.receive(frame);
    let Verdict::Forward { .. } = outcome.verdict else { return None };
    let outer = adit_tunnel::decapsulate(&outcome.outputs[0].bytes[14..]).unwrap().outer;
    match outer.destination {
        IpAddr::V4(address) => Some(address.octets()[3]),
        IpAddr::V6(_) => None,
    }
}

/// A connection that carries data for two seconds, so that it counts as active.
fn establish(world: &mut World, client: &str) -> Option<u8> {
    let placed = server(world, &Tcp::syn(client, VIP).frame());
    for offset in 0..4 {
        world.advance(Duration::from_millis(500));
        let again = server(world, &Tcp::data(client, VIP, offset, b"x").frame());
        assert_eq!(again, placed, "a known flow stays");
    }
    placed
}

fn reset(world: &mut World, client: &str) {
    let frame = Tcp { rst: true, syn: false, ..Tcp::data(client, VIP, 4, b"") }.frame();
    world.receive(&frame);
}

#[test]
fn the_least_loaded_takes_the_next_connection() {
    // Twelve connections of weights 1, 2 and 3, one after the other.
    let cases = [
        (SchedulerKind::Lc, [4, 4, 4]),
        (SchedulerKind::Wlc, [2, 4, 6]),
        (SchedulerKind::Sed, [2, 4, 6]),
        (SchedulerKind::Fo, [0, 0, 12]),
        // Weight and one more each, then nobody has room.
        (SchedulerKind::Ovf, [2, 3, 4]),
    ];
    for (scheduler, expected) in cases {
        let mut world = world(scheduler, vec![member(1, 1), member(2, 2), member(3, 3)]);
        let mut tally = [0; 3];
        for n in 0..12 {
            if let Some(last) = establish(&mut world, &format!("192.0.2.7:{}", 40_000 + n)) {
                tally[usize::from(last) - 1] += 1;
            }
        }
        assert_eq!(tally, expected, "{}", scheduler.name());
        let refused = world.counters.dropped(DropReason::NoRealServer).get();
        assert_eq!(refused > 0, scheduler == SchedulerKind::Ovf, "{}", scheduler.name());
        assert!(world.counters.ledger_balances());
    }
}

#[test]
fn a_connection_that_ends_makes_room_for_the_next() {
    let mut world = world(SchedulerKind::Wlc, vec![member(1, 1), member(2, 1)]);
    let first = establish(&mut world, "192.0.2.7:40000").unwrap();
    let second = establish(&mut world, "192.0.2.7:40001").unwrap();
    assert_ne!(first, second);
    // It closes: an inactive connection, a 256th of an active one.
    reset(&mut world, "192.0.2.7:40001");
    assert_eq!(establish(&mut world, "192.0.2.7:40002"), Some(second));
    world.advance(Duration::from_secs(20));
    for _ in 0..100 {
        world.tick();
    }
    let gauges = world.counters.destinations.iter().map(|d| (d.active.get(), d.inactive.get()));
    assert_eq!(gauges.collect::<Vec<_>>(), [(1, 0), (1, 0)], "it was forgotten");
}

#[test]
fn a_client_whose_server_takes_none_is_refused_unless_there_is_a_fallback() {
    use SchedulerFlag::{MhFallback, ShFallback};
    for (kind, fallback) in [(SchedulerKind::Sh, ShFallback), (SchedulerKind::Mh, MhFallback)] {
        let spec = |flags: &[SchedulerFlag], down: Option<u8>| {
            let mut members = vec![member(1, 10), member(2, 10), member(3, 10)];
            for member in &mut members {
                member.down =
                    down.is_some_and(|last| member.address == IpAddr::from([10, 20, 0, last]));
            }
            ServiceSpec { flags: flags.into(), members, ..ServiceSpec::orders(kind) }
        };
        let syn = Tcp::syn("192.0.2.7:40000", VIP).frame();
        let another = Tcp::syn("192.0.2.7:40001", VIP).frame();
        let fresh = |spec| World::new(snapshot(vec![spec]), 100);
        let placed = server(&mut fresh(spec(&[], None)), &syn);
        assert!(placed.is_some());
        assert_eq!(server(&mut fresh(spec(&[], None)), &another), placed, "by the address alone");

        let mut strict = fresh(spec(&[], placed));
        assert_eq!(server(&mut strict, &syn), None);
        assert_eq!(strict.counters.dropped(DropReason::NoRealServer).get(), 1);
        let mut lenient = fresh(spec(&[fallback], placed));
        assert!(server(&mut lenient, &syn).is_some_and(|other| Some(other) != placed));
    }
}

#[test]
fn ports_count_where_they_should() {
    use SchedulerFlag::{MhPort, ShPort};
    let servers = |kind, flags: &[SchedulerFlag]| -> HashSet<u8> {
        let members = (1..=8).map(|last| member(last, 1)).collect();
        let spec = ServiceSpec { flags: flags.into(), members, ..ServiceSpec::orders(kind) };
        let mut world = World::new(snapshot(vec![spec]), 1000);
        let syn = |port| Tcp::syn(&format!("192.0.2.7:{port}"), VIP).frame();
        (40_000..40_100).map(|port| server(&mut world, &syn(port)).unwrap()).collect()
    };
    for (kind, port) in [(SchedulerKind::Sh, ShPort), (SchedulerKind::Mh, MhPort)] {
        assert_eq!(servers(kind, &[]).len(), 1, "{}", kind.name());
        assert_eq!(servers(kind, &[port]).len(), 8, "{}", kind.name());
    }
    assert_eq!(servers(SchedulerKind::Dh, &[]).len(), 1);
    assert_eq!(servers(SchedulerKind::Maglev, &[]).len(), 8);
}

/// Unknown segments are guessed under hashes, and answered by a reset under all others.
#[test]
fn only_hashes_guess() {
    for kind in SchedulerKind::ALL {
        let mut world = world(kind, vec![member(1, 10), member(2, 10)]);
        let outcome = world.receive(&Tcp::data("192.0.2.7:40000", VIP, 0, b"x").frame());
        let guessed = matches!(outcome.verdict, Verdict::Forward { .. });
        let name = kind.name();
        assert_eq!(guessed, ["maglev", "mh", "sh", "dh"].contains(&name), "{name}");
        if !guessed {
            assert!(matches!(outcome.verdict, Verdict::Reply { to: ReplyTo::Tap, .. }), "{name}");
        }
        assert_eq!(world.counters.worker.rederived.get(), u64::from(guessed), "{name}");
    }
}

/// As `ipvsadm -x` and `-y`: full at four connections, open again below two.
#[test]
fn a_full_server_takes_none_until_it_is_below_its_lower_threshold() {
    let thresholds = vec![Some(Threshold::new(4, Some(2), None)), None];
    let members = vec![member(1, 100), member(2, 1)];
    let spec = ServiceSpec { members, thresholds, ..ServiceSpec::orders(SchedulerKind::Fo) };
    let mut world = World::new(snapshot(vec![spec]), 1000);
    let client = |n: u16| format!("192.0.2.7:{}", 40_000 + n);
    for n in 0..4 {
        assert_eq!(establish(&mut world, &client(n)), Some(1), "{n}");
    }
    assert_eq!(establish(&mut world, &client(4)), Some(2), "full");
    // Those it has go on; two of four end, then one more.
    let forget = |world: &mut World, ended: std::ops::Range<u16>| {
        ended.for_each(|n| reset(world, &client(n)));
        world.advance(Duration::from_secs(20));
        (0..100).for_each(|_| world.tick());
    };
    forget(&mut world, 0..2);
    assert_eq!(establish(&mut world, &client(5)), Some(2), "two are not below two");
    forget(&mut world, 2..3);
    assert_eq!(establish(&mut world, &client(6)), Some(1), "one is");
    assert_eq!(establish(&mut world, &client(7)), Some(1), "and three are not four");
}

/// A hash without a fallback refuses clients of a full server, as IPVS does; those that persistence
/// keeps there come still.
#[test]
fn thresholds_hold_for_hashes_and_not_for_persistence() {
    let full = |flags: &[SchedulerFlag]| ServiceSpec {
        flags: flags.into(),
        members: vec![member(1, 1)],
        thresholds: vec![Some(Threshold::new(1, None, None))],
        ..ServiceSpec::orders(SchedulerKind::Sh)
    };
    let mut world = World::new(snapshot(vec![full(&[])]), 100);
    assert_eq!(server(&mut world, &Tcp::syn("192.0.2.7:1", VIP).frame()), Some(1));
    for flags in [&[][..], &[SchedulerFlag::ShFallback]] {
        let mut world = World::new(snapshot(vec![full(flags)]), 100);
        assert_eq!(server(&mut world, &Tcp::syn("192.0.2.7:1", VIP).frame()), Some(1));
        assert_eq!(server(&mut world, &Tcp::syn("192.0.2.8:1", VIP).frame()), None);
        assert_eq!(world.counters.dropped(DropReason::NoRealServer).get(), 1);
    }
    let mut world = World::new(snapshot(vec![full(&[]).persistent(600)]), 100);
    establish(&mut world, "192.0.2.7:1");
    world.remember_client();
    assert_eq!(server(&mut world, &Tcp::syn("192.0.2.7:2", VIP).frame()), Some(1), "kept there");
    assert_eq!(server(&mut world, &Tcp::syn("192.0.2.8:2", VIP).frame()), None, "new to it");
}

#[test]
fn each_datagram_is_scheduled_anew_and_leaves_no_flow() {
    let mut world = World::new(snapshot(vec![datagrams(SchedulerKind::Rr, true)]), 100);
    let frame = frames::udp("192.0.2.7:40000", VIP, b"question");
    let servers: Vec<_> = (0..6).map(|_| server(&mut world, &frame).unwrap()).collect();
    assert_eq!(servers, [11, 21, 11, 21, 11, 21]);
    let counters = &world.counters;
    for (destination, traffic) in counters.destinations.iter().zip(&counters.traffic) {
        let now = destination.read();
        let packets = traffic.packets.get();
        assert_eq!((now.connections, packets), (3, 3), "each counts as a connection");
        assert_eq!((now.active, now.inactive), (0, 0), "and none is there");
    }
    assert_eq!(world.counters.worker.scheduled.get(), 6);
    assert!(world.counters.ledger_balances());

    // With flows the same client stays.
    let mut tracked = World::new(snapshot(vec![datagrams(SchedulerKind::Rr, false)]), 100);
    let servers: HashSet<_> = (0..6).map(|_| server(&mut tracked, &frame).unwrap()).collect();
    assert_eq!(servers.len(), 1);
}

#[test]
fn a_full_table_is_no_matter_to_datagrams_without_flows() {
    let mut world = World::new(snapshot(vec![datagrams(SchedulerKind::Rr, true)]), 1);
    for port in 40_000..40_200 {
        let frame = frames::udp(&format!("192.0.2.7:{port}"), VIP, b"x");
        assert!(server(&mut world, &frame).is_some());
    }
    assert_eq!(world.counters.worker.evicted_unproven.get(), 0);
}

/// Where the pieces of a datagram went, in the order in which they left.
fn servers_of(world: &mut World, pieces: &[Vec<u8>]) -> Vec<IpAddr> {
    let outputs = pieces.iter().flat_map(|piece| world.receive(piece).outputs);
    let outputs: Vec<_> = outputs.collect();
    let outer = |bytes: &[u8]| adit_tunnel::decapsulate(&bytes[14..]).unwrap().outer.destination;
    outputs.iter().map(|output| outer(&output.bytes)).collect()
}

#[test]
fn fragments_of_one_datagram_stay_together_when_each_is_scheduled_anew() {
    let pieces = |identification| {
        let datagram = frames::udp("192.0.2.7:40000", VIP, &[7; 6000]);
        frames::fragments(&datagram, 1400, identification)
    };
    let mut reversed = pieces(2);
    reversed.reverse();
    // The network doubles the first fragment after the second came.
    let mut doubled = pieces(3);
    doubled.insert(2, doubled[0].clone());
    let mut world = World::new(snapshot(vec![datagrams(SchedulerKind::Rr, true)]), 100);
    let mut first = Vec::new();
    for order in [pieces(1), reversed, doubled, pieces(4)] {
        let servers = servers_of(&mut world, &order);
        assert_eq!(servers.len(), order.len());
        assert!(servers.iter().all(|server| *server == servers[0]), "{servers:?}");
        first.push(servers[0]);
    }
    assert_ne!(first[0], first[1], "the next datagram has the next server");
    assert_eq!(world.counters.worker.scheduled.get(), 4, "the double was no new datagram");
    assert!(world.counters.ledger_balances());
}

/// An error that a client's router sends about an answer finds the server by the hash; where
/// datagrams take turns nobody can say whose answer it was.
#[test]
fn errors_about_answers_find_the_server_by_the_hash() {
    for kind in [SchedulerKind::Maglev, SchedulerKind::Sh, SchedulerKind::Wlc] {
        let mut world = World::new(snapshot(vec![datagrams(kind, true)]), 100);
        let sent_to = server(&mut world, &frames::udp("192.0.2.7:40000", VIP, b"x"));
        let (client, vip) = frames::ends("192.0.2.7:40000", VIP);
        let mut answer = Vec::new();
        let answers = frames::ip(vip.ip(), client.ip(), 60, true).udp(vip.port(), client.port());
        answers.write(&mut answer, b"answer").unwrap();
        let error =
            frames::destination_unreachable("203.0.113.1", "198.51.100.10", &answer[14..42]);
        let expected = if kind == SchedulerKind::Wlc { None } else { sent_to };
        assert_eq!(server(&mut world, &error), expected, "{}", kind.name());
    }
}
