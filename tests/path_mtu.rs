//! A hop between director and real server narrows: what clients are told, and whom the director
//! believes.

#![allow(clippy::unwrap_used, reason = "tests")]

mod world;

use std::time::Duration;

use adit::dataplane::{
    ids::RealId,
    scheduler::{Member, SchedulerKind},
    verdict::{DropReason, Event, SendResult, Source, Verdict},
};
use etherparse::{Icmpv6Type, PacketBuilder};

use world::{
    ServiceSpec, World,
    frames::{Tcp, fragmentation_needed},
    snapshot,
};

const CLIENT: &str = "203.0.113.7:40000";
const VIP: &str = "198.51.100.10:5432";
const CLIENT_V6: &str = "[2001:db8:9::7]:40000";
const VIP_V6: &str = "[2001:db8:5::10]:5432";

/// What a client's segment became in the tunnel: the outer packet, without link header.
fn forwarded(world: &mut World, frame: &[u8]) -> Vec<u8> {
    let outcome = world.receive(frame);
    assert!(matches!(outcome.verdict, Verdict::Forward { .. }), "{:?}", outcome.verdict);
    outcome.outputs[0].bytes[14..].to_vec()
}

/// An IPv4 director with a session, and its last outer packet: 1500 bytes.
fn session() -> (World, Vec<u8>) {
    let mut world = World::new(snapshot(vec![ServiceSpec::orders(SchedulerKind::Maglev)]), 100);
    forwarded(&mut world, &Tcp::syn(CLIENT, VIP).frame());
    let outer = forwarded(&mut world, &Tcp::data(CLIENT, VIP, 0, &[7; 1440]).frame());
    assert_eq!(outer.len(), 1500);
    (world, outer)
}

fn packet_too_big(outer: &[u8], quoted: usize, mtu: u32) -> Vec<u8> {
    let source = outer[8..24].try_into().unwrap();
    let mut packet = Vec::new();
    PacketBuilder::ipv6([0x20; 16], source, 60)
        .icmpv6(Icmpv6Type::PacketTooBig { mtu })
        .write(&mut packet, &outer[..quoted])
        .unwrap();
    packet
}

fn hear(world: &mut World, error: &[u8]) -> Verdict {
    world.receive_with(Source::OuterError, error, SendResult::Sent).verdict
}

/// The MTU that the client is told when it sends `payload` bytes; `None` when they are forwarded.
fn told(world: &mut World, payload: usize) -> Option<u32> {
    let frame = Tcp::data(CLIENT, VIP, 1440, &vec![7; payload]).frame();
    let outcome = world.receive(&frame);
    match outcome.verdict {
        Verdict::Forward { .. } => None,
        Verdict::Reply { .. } => {
            let icmp = &outcome.outputs[0].bytes[14 + 20..];
            assert_eq!(icmp[..2], [3, 4]);
            Some(u32::from_be_bytes(icmp[4..8].try_into().unwrap()))
        }
        Verdict::Fragmented
        | Verdict::Pass
        | Verdict::HandedOver
        | Verdict::Hold
        | Verdict::Drop(_) => {
            panic!("{:?}", outcome.verdict)
        }
    }
}

#[test]
fn a_narrowed_hop_reaches_the_client_and_is_forgotten_after_ten_minutes() {
    for quoted in [28, 548] {
        let (mut world, outer) = session();
        let heard = hear(&mut world, &fragmentation_needed(&outer, quoted, 1400));
        assert_eq!(heard, Verdict::Pass, "the kernel has its own copy");
        assert_eq!(world.counters.worker.path_mtu_updates.get(), 1);
        let update = |event: &&Event| matches!(event, Event::PathMtu { mtu: 1400, .. });
        assert_eq!(world.shell.events.iter().filter(update).count(), 1);
        assert_eq!(told(&mut world, 1440), Some(1380));
        assert_eq!(told(&mut world, 1340), None, "1380 bytes fit");
        world.advance(Duration::from_secs(599));
        assert_eq!(told(&mut world, 1440), Some(1380));
        world.advance(Duration::from_secs(1));
        assert_eq!(told(&mut world, 1440), None);
        assert!(world.counters.ledger_balances());
    }
}

#[test]
fn forged_errors_with_one_thing_wrong_are_ignored() {
    let sequence_at = 20 + 20 + 4;
    let with_sequence = |outer: &[u8], shift: u32| {
        let mut outer = outer.to_vec();
        let at = sequence_at..sequence_at + 4;
        let sequence = u32::from_be_bytes(outer[at.clone()].try_into().unwrap());
        outer[at].copy_from_slice(&sequence.wrapping_add(shift).to_be_bytes());
        outer
    };
    let flipped = |outer: &[u8], at: usize| {
        let mut outer = outer.to_vec();
        outer[at] ^= 1;
        outer
    };
    let (_, outer) = session();
    let table = [
        ("nothing wrong", outer.clone(), 548, true),
        ("cookie", flipped(&outer, 5), 548, false),
        ("cookie, short quote", flipped(&outer, 4), 28, false),
        ("quoted length, so another cookie", flipped(&outer, 20 + 3), 548, false),
        ("sequence not sent yet", with_sequence(&outer, 1441), 548, false),
        ("sequence long ago", with_sequence(&outer, 0xff00_0000), 548, false),
        // While the table is full there are flows without an entry; the cookie speaks for them.
        ("a flow that is not tracked", flipped(&outer, 40 + 1), 548, true),
    ];
    for (what, quoted, length, believed) in table {
        let (mut world, _) = session();
        let heard = hear(&mut world, &fragmentation_needed(&quoted, length, 1400));
        let expected =
            if believed { Verdict::Pass } else { Verdict::Drop(DropReason::ForgedError) };
        assert_eq!(heard, expected, "{what}");
        assert_eq!(told(&mut world, 1440), believed.then_some(1380), "{what}");
        assert_eq!(world.counters.worker.path_mtu_updates.get(), u64::from(believed), "{what}");
    }
}

#[test]
fn sixteen_wrong_cookies_close_the_short_form() {
    let (mut world, outer) = session();
    let mut wrong = outer.clone();
    wrong[4] ^= 0x40;
    for _ in 0..16 {
        let heard = hear(&mut world, &fragmentation_needed(&wrong, 28, 1400));
        assert_eq!(heard, Verdict::Drop(DropReason::ForgedError));
    }
    let heard = hear(&mut world, &fragmentation_needed(&outer, 28, 1400));
    assert_eq!(heard, Verdict::Drop(DropReason::ErrorIgnored));
    assert_eq!(told(&mut world, 1440), None);
    hear(&mut world, &fragmentation_needed(&outer, 548, 1400));
    assert_eq!(told(&mut world, 1440), Some(1380), "a whole quote is still believed");
    assert!(world.counters.ledger_balances());
}

#[test]
fn over_ipv6_the_quoted_flow_is_the_proof_and_1280_always_goes_through() {
    let spec = ServiceSpec {
        vip: "2001:db8:5::10",
        members: vec![Member::up("2001:db8:b::11".parse().unwrap(), 100)],
        ..ServiceSpec::orders(SchedulerKind::Maglev)
    };
    let mut world = World::new(snapshot(vec![spec]), 100);
    forwarded(&mut world, &Tcp::syn(CLIENT_V6, VIP_V6).frame());
    let segment = |payload: usize| Tcp::data(CLIENT_V6, VIP_V6, 0, &vec![7; payload]).frame();
    let outer = forwarded(&mut world, &segment(1400));
    assert_eq!(outer.len(), 1500);
    let told = |world: &mut World| {
        let reply = world.receive(&segment(1400)).outputs.remove(0).bytes;
        let icmp = &reply[14 + 40..];
        assert_eq!(icmp[..2], [2, 0]);
        u32::from_be_bytes(icmp[4..8].try_into().unwrap())
    };
    let mut forged = outer.clone();
    forged[40 + 40 + 4] ^= 0x80; // the sequence number's highest bit
    let heard = hear(&mut world, &packet_too_big(&forged, 600, 1400));
    assert_eq!(heard, Verdict::Drop(DropReason::ForgedError));
    let heard = hear(&mut world, &packet_too_big(&outer, 48, 1400));
    assert_eq!(heard, Verdict::Drop(DropReason::ErrorIgnored), "nothing to check");
    assert_eq!(world.counters.worker.path_mtu_updates.get(), 0);
    assert_eq!(hear(&mut world, &packet_too_big(&outer, 600, 1400)), Verdict::Pass);
    assert_eq!(told(&mut world), 1360);
    assert_eq!(hear(&mut world, &packet_too_big(&outer, 600, 1290)), Verdict::Pass);
    let updates = [1400, 1290].map(|mtu| Event::PathMtu { real: RealId(0), mtu });
    assert!(updates.iter().all(|update| world.shell.events.contains(update)));
    assert_eq!(told(&mut world), 1280, "not 1250: every IPv6 link carries 1280");
    let outcome = world.receive(&segment(1220));
    assert_eq!(outcome.verdict, Verdict::Fragmented, "so 1280 bytes go in pieces");
    assert!(outcome.outputs.iter().all(|output| output.bytes.len() <= 14 + 1290));
    assert!(world.counters.ledger_balances());
}
