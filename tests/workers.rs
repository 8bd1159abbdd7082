//! Several workers do what one does: the same seeded traffic goes through 1, 2 and 4 of them, where
//! each frame comes to whichever the dice say, as on a kernel that spreads by its own rule.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod world;

use std::{collections::HashSet, net::IpAddr, time::Duration};

use adit::dataplane::{
    counters::{DestinationReading, WorkerReading},
    ids::DestinationId,
    packet::address,
    scheduler::SchedulerKind,
    service::Protocol,
    steering::Tuple,
    verdict::{DropReason, EgressId, Event, Source, Verdict},
};
use world::{
    Output, ServiceSpec,
    frames::{self, Tcp},
    snapshot,
    team::Workers,
};

const VIP: &str = "198.51.100.10:5432";

/// A seeded stream of numbers (splitmix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// What happens in a simulation.
enum Step {
    Frame(Source, Vec<u8>),
    /// A router says that the last outer packet was too big for 1300 bytes.
    Narrow,
    Wait(Duration),
}

/// Sessions, datagrams whole and in pieces, errors of clients' paths, echoes and strangers, mixed.
fn script(seed: u64, steps: usize) -> Vec<Step> {
    let mut dice = Dice(seed);
    let mut script = Vec::new();
    let mut waiting: Vec<Vec<u8>> = Vec::new();
    let mut offsets = vec![0_u32; 60];
    for number in 0..steps {
        let flow = dice.below(60) as usize;
        let client = format!("192.0.2.{}:{}", 1 + flow % 20, 40_000 + flow);
        let tap = |frame| Step::Frame(Source::Tap, frame);
        script.push(match dice.below(100) {
            0..10 => tap(Tcp::syn(&client, VIP).frame()),
            10..52 => {
                offsets[flow] += 5;
                tap(Tcp::data(&client, VIP, offsets[flow], b"query").frame())
            }
            52..55 => {
                let mut fin = Tcp::data(&client, VIP, offsets[flow], b"");
                fin.fin = true;
                tap(fin.frame())
            }
            55..62 => tap(frames::udp(&client, VIP, b"question")),
            62..70 => {
                let payload: Vec<u8> = (0..4000_u32).map(|n| n as u8 ^ flow as u8).collect();
                let datagram = frames::udp(&client, VIP, &payload);
                waiting.extend(frames::fragments(&datagram, 1400, number as u16));
                continue;
            }
            70..82 => {
                if waiting.is_empty() {
                    continue;
                }
                let place = dice.below(waiting.len() as u64) as usize;
                tap(waiting.swap_remove(place))
            }
            82..87 => {
                // What a real server sent to the client, as the client's router quotes it.
                let reply = Tcp::data(VIP, &client, 0, b"answer").frame();
                tap(frames::destination_unreachable("203.0.113.1", "198.51.100.10", &reply[14..48]))
            }
            87..90 => tap(frames::echo_request("192.0.2.7", "198.51.100.10")),
            90..92 => tap(Tcp::syn(&client, "198.51.100.10:9").frame()),
            92..93 => Step::Narrow,
            93..94 => {
                let mut large = Tcp::data(&client, VIP, offsets[flow], &[7; 1440]);
                large.dont_fragment = dice.below(2) == 0;
                tap(large.frame())
            }
            _ => Step::Wait(Duration::from_millis(10 + dice.below(900))),
        });
    }
    script.extend(waiting.into_iter().map(|frame| Step::Frame(Source::Tap, frame)));
    script
}

/// A TCP and a UDP service on one VIP.
fn services(scheduler: SchedulerKind) -> Vec<ServiceSpec> {
    let tcp = ServiceSpec::orders(scheduler).persistent(600);
    let udp = ServiceSpec { protocol: Protocol::Udp, ..ServiceSpec::orders(scheduler) };
    vec![tcp, udp]
}

/// What a packet became, without what workers choose for themselves (outer identifications).
#[derive(Debug, PartialEq, Eq)]
enum Sent {
    To(IpAddr, Vec<u8>),
    /// A piece of an outer packet: whose, and how long.
    Piece(IpAddr, usize),
    Back(Vec<u8>),
}

fn sent(output: &Output) -> Sent {
    if output.egress == EgressId::TAP {
        return Sent::Back(output.bytes.clone());
    }
    let outer = &output.bytes[14..];
    if outer[6] & 0x3f != 0 || outer[7] != 0 {
        let destination: [u8; 4] = outer[16..20].try_into().unwrap();
        return Sent::Piece(destination.into(), outer.len());
    }
    let outer = adit_tunnel::decapsulate(outer).unwrap();
    Sent::To(outer.outer.destination, outer.inner.to_vec())
}

/// All that can be seen of a simulation.
#[derive(Debug, PartialEq)]
struct Seen {
    sent: Vec<Vec<Sent>>,
    events: Vec<Event>,
    totals: WorkerReading,
    dropped: Vec<(&'static str, u64)>,
    destinations: Vec<DestinationReading>,
}

/// Runs a script with so many workers. Also returns how many frames were handed over.
fn run(workers: u16, scheduler: SchedulerKind, script: &[Step], seed: u64) -> (Seen, u64) {
    let mut world = Workers::new(workers, snapshot(services(scheduler)), 2000);
    let mut dice = Dice(seed);
    let mut all = Vec::new();
    let mut last_outer: Option<Vec<u8>> = None;
    for step in script {
        let worker = dice.below(workers.into()) as usize;
        let (source, frame) = match step {
            Step::Frame(source, frame) => (*source, frame.clone()),
            Step::Narrow => match &last_outer {
                Some(outer) => (Source::OuterError, frames::fragmentation_needed(outer, 600, 1300)),
                None => continue,
            },
            Step::Wait(duration) => {
                world.advance(*duration);
                continue;
            }
        };
        let (_, outputs) = world.receive(worker, source, &frame);
        assert!(world.hops <= 2 || source == Source::Tap, "{} hand-overs", world.hops);
        for counters in world.counters.workers() {
            assert!(counters.ledger_balances(), "{:?}", counters.worker);
        }
        let mut whole = outputs.iter().filter(|o| o.egress != EgressId::TAP);
        if let Some(output) = whole.rfind(|o| o.bytes[20] & 0x40 != 0)
            && output.bytes.len() > 14 + 600
        {
            last_outer = Some(output.bytes[14..].to_vec());
        }
        all.push(outputs.iter().map(sent).collect());
    }
    let mut totals = world.counters.totals();
    let handed = totals.handed_over;
    assert_eq!(handed, totals.taken_over, "nothing is left between workers");
    (totals.handed_over, totals.taken_over) = (0, 0);
    let seen = Seen {
        sent: all,
        events: world.events(),
        totals,
        dropped: DropReason::ALL
            .iter()
            .map(|reason| (reason.name(), world.counters.dropped(*reason)))
            .filter(|(_, count)| *count > 0)
            .collect(),
        destinations: (0..world.snapshot.destinations.len() as u32)
            .map(|id| world.counters.destination(DestinationId(id)).unwrap())
            .collect(),
    };
    (seen, handed)
}

#[test]
fn one_two_and_four_workers_do_the_same() {
    for scheduler in [SchedulerKind::Maglev, SchedulerKind::Wrr, SchedulerKind::Lc] {
        for seed in 1..=8 {
            let script = script(seed, 1500);
            let (alone, nothing) = run(1, scheduler, &script, seed);
            assert_eq!(nothing, 0, "there is nobody to hand over to");
            let totals = &alone.totals;
            let busy = totals.scheduled > 50 && totals.icmp_forwarded > 20;
            let reached = totals.echo_answers > 0 && !alone.events.is_empty();
            assert!(busy && reached && totals.forwarded > 500, "{totals:?}");
            for workers in [2, 4] {
                let (together, handed) = run(workers, scheduler, &script, seed);
                assert!(handed > 400, "{handed} frames were handed over");
                for (number, (one, many)) in alone.sent.iter().zip(&together.sent).enumerate() {
                    assert_eq!(one, many, "{scheduler:?}, {workers} workers, frame {number}");
                }
                assert_eq!(alone, together, "{scheduler:?}, {workers} workers");
            }
        }
    }
    // The script leads to what it should at least once.
    let narrowed = (1..=8).map(|seed| run(2, SchedulerKind::Maglev, &script(seed, 1500), seed));
    let totals: Vec<_> = narrowed.map(|(seen, _)| seen.totals).collect();
    assert!(totals.iter().any(|t| t.path_mtu_updates > 0), "no path ever narrowed");
    assert!(totals.iter().any(|t| t.fragmented > 0), "no packet was ever fragmented outside");
}

#[test]
fn packets_that_come_to_their_owner_are_not_handed_over() {
    let mut world = Workers::new(4, snapshot(services(SchedulerKind::Maglev)), 100);
    let mut owners = HashSet::new();
    for port in 40_000..40_100 {
        let client = format!("192.0.2.7:{port}");
        let (from, vip) = frames::ends(&client, VIP);
        let owner = world.steering.owner(&Tuple {
            client: &address(from.ip()),
            client_port: port,
            vip: &address(vip.ip()),
            vip_port: vip.port(),
            protocol: 6,
        });
        owners.insert(owner);
        for frame in [Tcp::syn(&client, VIP).frame(), Tcp::data(&client, VIP, 0, b"x").frame()] {
            let (verdict, _) = world.receive(usize::from(owner), Source::Tap, &frame);
            assert!(matches!(verdict, Verdict::Forward { .. }) && world.hops == 0);
        }
    }
    assert_eq!(owners.len(), 4, "all have some");
    assert_eq!(world.counters.totals().handed_over, 0);
}

#[test]
fn fragments_reach_one_server_in_order_wherever_they_come_in() {
    let payload: Vec<u8> = (0..9000_u32).map(|n| n as u8).collect();
    let mut spread = HashSet::new();
    for seed in 0..50 {
        let mut dice = Dice(seed);
        let mut world = Workers::new(4, snapshot(services(SchedulerKind::Rr)), 100);
        let client = format!("192.0.2.{}:{}", seed + 1, 40_000 + seed);
        let mut pieces = frames::fragments(&frames::udp(&client, VIP, &payload), 1400, 9);
        let last = pieces.len() - 1;
        // The first comes first, in the middle, or last.
        pieces.swap(0, dice.below(last as u64 + 1) as usize);
        let mut arrived = Vec::new();
        for piece in &pieces {
            let worker = dice.below(4) as usize;
            let (_, outputs) = world.receive(worker, Source::Tap, piece);
            arrived.extend(outputs.iter().map(sent));
        }
        let servers: HashSet<IpAddr> = arrived
            .iter()
            .map(|sent| match sent {
                Sent::To(real, _) => *real,
                Sent::Piece(..) | Sent::Back(_) => panic!("{sent:?}"),
            })
            .collect();
        assert_eq!((servers.len(), arrived.len()), (1, pieces.len()), "seed {seed}");
        // The first fragment arrives first; those that waited follow in the order they came.
        let Sent::To(_, first) = &arrived[0] else { panic!("{arrived:?}") };
        assert_eq!(first[6] & 0x1f, 0);
        assert_eq!(first[7], 0, "seed {seed}");
        for piece in &pieces {
            let there = |sent: &Sent| matches!(sent, Sent::To(_, inner) if *inner == piece[14..]);
            assert_eq!(arrived.iter().filter(|sent| there(sent)).count(), 1, "bit for bit");
        }
        assert_eq!(world.counters.totals().held, 0);
        assert!(world.counters.ledger_balances());
        let busy = world.counters.workers().iter().position(|w| w.worker.forwarded.get() > 0);
        spread.insert(busy);
    }
    assert_eq!(spread.len(), 4, "each worker owned some");
}

#[test]
fn what_finds_a_ring_full_is_dropped_and_counted() {
    let mut world = Workers::new(2, snapshot(services(SchedulerKind::Maglev)), 100);
    world.narrow(0);
    let (mut dropped, mut forwarded) = (0, 0);
    for port in 40_000..40_100 {
        let frame = Tcp::syn(&format!("192.0.2.7:{port}"), VIP).frame();
        let (verdict, outputs) = world.receive(0, Source::Tap, &frame);
        if verdict == Verdict::Drop(DropReason::HandOverFull) {
            dropped += 1;
            assert!(outputs.is_empty());
        } else {
            forwarded += 1;
        }
    }
    assert!(dropped > 20 && forwarded > 20, "{dropped} {forwarded}");
    assert_eq!(world.counters.dropped(DropReason::HandOverFull), dropped);
    assert!(world.counters.ledger_balances());
}

#[test]
fn held_fragments_are_let_go_where_they_meet() {
    let mut world = Workers::new(4, snapshot(services(SchedulerKind::Maglev)), 100);
    let pieces = frames::fragments(&frames::udp("192.0.2.7:40000", VIP, &[3; 4000]), 1400, 9);
    for worker in 0..4 {
        let (verdict, _) = world.receive(worker, Source::Tap, &pieces[1]);
        assert_eq!(verdict, Verdict::Hold);
    }
    assert_eq!(world.counters.totals().held, 4);
    world.advance(Duration::from_secs(31));
    assert_eq!(world.counters.totals().held, 0);
    assert_eq!(world.counters.dropped(DropReason::FragmentTimeout), 4);
    assert!(world.counters.ledger_balances());
}
