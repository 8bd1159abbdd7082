//! The core allocates when it is made and never again: a million mixed frames under a counting
//! allocator.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait")]

mod world;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    time::Duration,
};

use adit::dataplane::{
    counters::DestinationCounters,
    ids::{DestinationId, VipId},
    packet,
    probe::Probes,
    scheduler::{SchedulerFlag, SchedulerKind},
    service::{Ports, Protocol},
    snapshot::RealServer,
    verdict::{DropReason, SendResult, Source, Verdict},
};
use adit_tunnel::{Encapsulation, OuterTemplate};
use world::{ServiceSpec, World, frames, frames::Tcp, snapshot, team::Workers};

thread_local! {
    /// Allocations of this thread, counted only while it asks for it.
    static COUNTED: Cell<Option<u64>> = const { Cell::new(None) };
}

struct Counting;

fn count() {
    COUNTED.with(|counted| counted.set(counted.get().map(|n| n + 1)));
}

// SAFETY: every call goes on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations during `work`.
fn allocations(work: impl FnOnce()) -> u64 {
    COUNTED.with(|counted| counted.set(Some(0)));
    work();
    COUNTED.with(|counted| counted.take()).unwrap()
}

const VIP: &str = "198.51.100.10:5432";
/// Where a check of the first real server comes from.
const CHECK: &str = "10.0.0.5:64000";
const VIP_V6: &str = "[2001:db8:1::10]:5432";

/// Frames of every kind: hits, misses, fragments both ways, ICMP, neighbours, too big, junk; and
/// where they come in.
fn mixed_frames() -> Vec<(Source, Vec<u8>)> {
    let mut frames = clients_frames();
    let mut others = others_frames().into_iter().cycle();
    // Everybody else speaks once in a hundred frames.
    (0..frames.len() / 100).rev().for_each(|at| frames.insert(at * 100, others.next().unwrap()));
    frames
}

/// What neighbours and routers send: questions for the VIPs' hardware addresses, an impostor's
/// announcement, and errors about outer packets, believed and forged.
fn others_frames() -> Vec<(Source, Vec<u8>)> {
    // The same secrets and addresses make the same outer packets.
    let mut world = world();
    let mut outer = |client: &str| {
        world.receive(&Tcp::syn(client, VIP).frame());
        let outcome = world.receive(&Tcp::data(client, VIP, 0, b"select").frame());
        outcome.outputs[0].bytes[14..].to_vec()
    };
    let mut frames = vec![
        (Source::Neighbour, frames::arp_request("198.51.100.1", "198.51.100.10")),
        (Source::Neighbour, frames::arp_request("198.51.100.10", "198.51.100.10")),
        (Source::Neighbour, frames::arp_request("198.51.100.1", "198.51.100.77")),
    ];
    // In whole and as little as RFC 792 asks for.
    let outer = outer("192.0.0.1:1024");
    for quoted in [outer.len(), 28] {
        frames.push((Source::OuterError, frames::fragmentation_needed(&outer, quoted, 1400)));
        let mut forged = outer.clone();
        forged[4] ^= 0xff;
        frames.push((Source::OuterError, frames::fragmentation_needed(&forged, quoted, 1300)));
    }
    frames
}

fn clients_frames() -> Vec<(Source, Vec<u8>)> {
    let mut frames = Vec::new();
    for client in 0..2000u32 {
        let port = 1024 + client * 17 % 60_000;
        let address = format!("192.0.{}.{}:{port}", client / 250 % 250, client % 250 + 1);
        frames.push(Tcp::syn(&address, VIP).frame());
        frames.push(Tcp { payload: b"", ..Tcp::data(&address, VIP, 0, b"") }.frame());
        for offset in [0, 6, 12] {
            frames.push(Tcp::data(&address, VIP, offset, b"select").frame());
        }
        match client % 8 {
            0 => frames.push(Tcp { fin: true, ..Tcp::data(&address, VIP, 18, b"") }.frame()),
            1 => frames.push(Tcp::data(&address, VIP, 18, &[0; 1460]).frame()),
            2 => {
                let tcp = Tcp { dont_fragment: false, ..Tcp::data(&address, VIP, 18, &[0; 1460]) };
                frames.push(tcp.frame());
            }
            3 => {
                let datagram = frames::udp(&address, "198.51.100.10:53", &[1; 4000]);
                let mut pieces = frames::fragments(&datagram, 1400, client as u16);
                if client % 16 < 8 {
                    pieces.reverse();
                }
                frames.extend(pieces);
            }
            4 => {
                frames.push(frames::echo_request("192.0.2.9", "198.51.100.10"));
                // A router of the client's path, about a packet of the real server.
                let (client, vip) = frames::ends(&address, VIP);
                let mut answer = Vec::new();
                frames::ip(vip.ip(), client.ip(), 60, true)
                    .tcp(vip.port(), client.port(), 9, 1000)
                    .write(&mut answer, &[])
                    .unwrap();
                let quoted = &answer[14..42];
                frames.push(frames::destination_unreachable("192.0.2.9", "198.51.100.10", quoted));
            }
            5 => {
                frames.push(frames::arp_request("198.51.100.1", "198.51.100.10"));
                frames.push(frames::arp_request("198.51.100.1", "198.51.100.77"));
            }
            6 => {
                let six = format!("[2001:db8:9::{client:x}]:{port}");
                frames.push(Tcp { hop_limit: 255, ..Tcp::syn(CHECK, VIP) }.frame());
                frames.push(Tcp::syn(&six, VIP_V6).frame());
                frames.push(Tcp::data(&six, VIP_V6, 0, &[0; 1440]).frame());
            }
            _ => {
                frames.push(vec![client as u8; 60]);
                frames.push(Tcp::syn(&address, VIP).frame()[..50].to_vec());
                frames.push(Tcp::data(&address, "198.51.100.20:3306", 0, b"x").frame());
            }
        }
    }
    frames.into_iter().map(|frame| (Source::Tap, frame)).collect()
}

fn services() -> Vec<ServiceSpec> {
    let v6 = |address: &str| adit::dataplane::scheduler::Member::up(address.parse().unwrap(), 1);
    vec![
        ServiceSpec::orders(SchedulerKind::Maglev).persistent(600),
        ServiceSpec {
            protocol: Protocol::Udp,
            ports: Ports::Any,
            ..ServiceSpec::orders(SchedulerKind::Maglev)
        },
        ServiceSpec {
            vip: "198.51.100.20",
            ports: Ports::Range(3000..=4000),
            ..ServiceSpec::orders(SchedulerKind::Wrr)
        },
        ServiceSpec {
            vip: "2001:db8:1::10",
            members: vec![v6("2001:db8:20::11"), v6("2001:db8:30::21")],
            ..ServiceSpec::orders(SchedulerKind::Maglev)
        },
    ]
}

fn world() -> World {
    // Smaller than the number of flows, so that eviction has its turn as well.
    let mut snapshot = snapshot(services());
    // The second real server of each family by GUE with checksum, from several sources.
    let kind = Encapsulation::Gue { port: 6080, checksum: true };
    let reals = (0..).zip(snapshot.reals.iter()).map(|(place, (_, real))| {
        let first = real.outers.iter().next().unwrap();
        let (source, to) = (first.source(), first.destination());
        let outer = |_| OuterTemplate::with(kind, source, to, 64).unwrap();
        let outers = if place % 2 == 0 { real.outers.clone() } else { (0..3).map(outer).collect() };
        Some(RealServer { outers, ..real.clone() })
    });
    snapshot.reals = reals.collect::<Vec<_>>().into();
    let mut world = World::new(snapshot, 1500);
    world.shell.keep = false;
    let source = packet::address([10, 0, 0, 5].into());
    let blocks = [((VipId(0), 5432), vec![Some(DestinationId(0))])];
    world.snapshot.probes = Probes::new((64_000, 4), vec![source], blocks);
    world
}

#[test]
fn a_million_mixed_frames_allocate_nothing() {
    let frames = mixed_frames();
    let mut world = world();
    let mut verdicts = [0u64; 6];
    let total = 1_000_000;
    let allocated = allocations(|| {
        for (number, (source, frame)) in frames.iter().cycle().take(total).enumerate() {
            if number % 100 == 0 {
                world.advance(Duration::from_millis(7));
                world.tick();
            }
            let verdict = world.pass(*source, frame, SendResult::Sent);
            verdicts[match verdict {
                Verdict::Forward { .. } => 0,
                Verdict::Fragmented => 1,
                Verdict::Reply { .. } => 2,
                Verdict::Pass => 3,
                Verdict::Hold => 4,
                Verdict::HandedOver => unreachable!("there is one worker"),
                Verdict::Drop(_) => 5,
            }] += 1;
        }
    });
    assert_eq!(allocated, 0);
    assert!(verdicts.iter().all(|count| *count > 0), "every verdict has its turn: {verdicts:?}");
    let worker = &world.counters.worker;
    for (what, count) in [
        ("eviction", worker.evicted_unproven.get()),
        ("an error of a client's path", worker.icmp_forwarded.get()),
        ("a path MTU", worker.path_mtu_updates.get()),
        ("a forged error", world.counters.dropped(DropReason::ForgedError).get()),
        ("a neighbour's question", worker.neighbour_answers.get()),
        ("an impostor", worker.address_conflicts.get()),
        ("a health check", worker.probe_packets.get()),
    ] {
        assert!(count > 0, "{what} has its turn");
    }
    assert!(world.counters.ledger_balances());
    assert_eq!(world.counters.worker.received.get(), total as u64);
}

/// Frames come to any of four workers, so that most are handed over.
#[test]
fn workers_that_hand_over_allocate_nothing() {
    let frames = mixed_frames();
    let mut world = Workers::new(4, snapshot(services()), 1500);
    world.forget();
    let total = 200_000;
    let allocated = allocations(|| {
        for (number, (source, frame)) in frames.iter().cycle().take(total).enumerate() {
            if number % 100 == 0 {
                world.advance(Duration::from_millis(7));
            }
            world.pass(number * 7 % 4, *source, frame);
        }
    });
    assert_eq!(allocated, 0);
    let totals = world.counters.totals();
    assert!(totals.taken_over > total as u64 / 3, "{totals:?}");
    assert_eq!(totals.taken_over, totals.handed_over);
    assert!(world.counters.ledger_balances());
}

/// Every scheduler with all its flags, over TCP and, a datagram at a time, over UDP.
#[test]
fn no_scheduler_allocates() {
    let vip = |kind: usize| format!("198.51.100.{}", 100 + kind);
    let mut specs = Vec::new();
    for (number, kind) in SchedulerKind::ALL.into_iter().enumerate() {
        for (protocol, one_packet) in [(Protocol::Tcp, false), (Protocol::Udp, true)] {
            specs.push(ServiceSpec {
                vip: vip(number).leak(),
                protocol,
                one_packet,
                flags: SchedulerFlag::ALL.into(),
                ..ServiceSpec::orders(kind)
            });
        }
    }
    let mut world = World::new(snapshot(specs), 1500);
    world.shell.keep = false;
    let mut frames = Vec::new();
    for client in 0..200 {
        for number in 0..SchedulerKind::ALL.len() {
            let client = format!("192.0.2.{}:{}", client + 1, 1024 + client * 17);
            let to = format!("{}:5432", vip(number));
            frames.push(Tcp::syn(&client, &to).frame());
            frames.push(Tcp::data(&client, &to, 0, b"select").frame());
            frames.push(frames::udp(&client, &to, b"question"));
        }
    }
    let allocated = allocations(|| {
        for frame in frames.iter().cycle().take(50_000) {
            world.advance(Duration::from_millis(3));
            let verdict = world.pass(Source::Tap, frame, SendResult::Sent);
            assert!(matches!(verdict, Verdict::Forward { .. }), "{verdict:?}");
        }
    });
    assert_eq!(allocated, 0);
    let scheduled = |d: &DestinationCounters| d.connections.get() > 0;
    // Two real servers in each service.
    let mut services = world.counters.destinations.chunks(2);
    assert_eq!(services.len(), 2 * SchedulerKind::ALL.len());
    assert!(services.all(|reals| reals.iter().any(scheduled)), "every service has its turn");
}

#[test]
fn the_count_sees_an_allocation() {
    let allocated = allocations(|| drop(std::hint::black_box(Box::new(7))));
    assert_eq!(allocated, 1);
}
