//! The kernel's program and the core's rule agree, packet by packet: each frame is shown to the
//! program in the kernel (BPF_PROG_TEST_RUN) and to a core of four workers.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod world;

use std::collections::HashSet;

use adit::{
    dataplane::{
        packet::address,
        scheduler::{Member, SchedulerKind},
        service::Protocol,
        steering::{self, Steering, Tuple},
        verdict::Source,
    },
    io::{SteeringProgram, SteeringRule},
};
use world::{
    ServiceSpec,
    frames::{self, Tcp},
    snapshot,
    team::Workers,
};

const VIP: &str = "198.51.100.10:5432";
const VIP_V6: &str = "[2001:db8:5::10]:5432";

fn rule(steering: Steering) -> SteeringRule {
    SteeringRule {
        workers: steering.workers(),
        seed: steering.seed(),
        multiplier: steering::MULTIPLIER,
        fold: steering::FOLD,
    }
}

/// The program in the kernel, or `None` where this process may not load any.
fn program(steering: Steering) -> Option<SteeringProgram> {
    match SteeringProgram::load(&rule(steering)) {
        Ok(program) => Some(program),
        Err(error) if nix::unistd::geteuid().is_root() => panic!("{error}"),
        Err(error) => {
            let required = std::env::var_os("ADIT_TEST_REQUIRE_ALL").is_some_and(|v| v == "1");
            assert!(!required, "cannot run here, and ADIT_TEST_REQUIRE_ALL=1: {error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn services() -> Vec<ServiceSpec> {
    let v6 = |protocol| ServiceSpec {
        vip: "2001:db8:5::10",
        protocol,
        members: vec![Member::up("2001:db8:b::11".parse().unwrap(), 100)],
        ..ServiceSpec::orders(SchedulerKind::Maglev)
    };
    let v4 = |protocol| ServiceSpec { protocol, ..ServiceSpec::orders(SchedulerKind::Maglev) };
    [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(|p| [v4(p), v6(p)]).collect()
}

/// What a client sends in one flow, and what routers say of it: each is the owner's, but for
/// fragments.
fn frames_of(client: &str, vip: &str) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let reply = Tcp::data(vip, client, 0, b"answer").frame();
    let answer = frames::udp(vip, client, b"answer");
    let error = |quoted: &[u8]| {
        let (router, vip) = frames::ends("203.0.113.1:1", vip);
        let v4 = vip.is_ipv4();
        let router = if v4 { router.ip() } else { "2001:db8:1::1".parse().unwrap() };
        let quoted = &quoted[14..quoted.len().min(14 + 40 + 20)];
        let mut frame = Vec::new();
        let step = frames::ip(router, vip.ip(), 64, false);
        if v4 {
            step.icmpv4_raw(11, 0, [0; 4]).write(&mut frame, quoted).unwrap();
        } else {
            step.icmpv6_raw(1, 3, [0; 4]).write(&mut frame, quoted).unwrap();
        }
        frame
    };
    let whole = vec![
        Tcp::syn(client, vip).frame(),
        Tcp::data(client, vip, 0, b"query").frame(),
        error(&reply),
        frames::udp(client, vip, b"question"),
        error(&answer),
    ];
    let pieces = frames::fragments(&frames::udp(client, vip, &[7; 4000]), 1400, 9);
    (whole, pieces)
}

/// With IP options (four no-operations) behind the header.
fn with_options(frame: &[u8]) -> Vec<u8> {
    let mut with = [&frame[..34], &[1; 4], &frame[34..]].concat();
    with[14] = 0x46;
    let total = u16::from_be_bytes([frame[16], frame[17]]) + 4;
    with[16..18].copy_from_slice(&total.to_be_bytes());
    with[24..26].fill(0);
    let words = with[14..38].as_chunks::<2>().0.iter();
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    with[24..26].copy_from_slice(&sum.to_be_bytes());
    with
}

#[test]
fn the_kernel_brings_each_packet_where_the_core_wants_it() {
    for workers in [2, 3, 4, 256] {
        // The harness's own seed: both sides have the same rule.
        let mut world = Workers::new(workers, snapshot(services()), 1000);
        let steering = world.steering;
        let Some(program) = program(steering) else { return };
        let mut used = HashSet::new();
        for number in 0..200_u16 {
            let (v4, v6) = (
                format!("192.0.{}.{}:{}", number % 7, number % 199 + 1, 40_000 + number * 3),
                format!("[2001:db8:{number:x}::{:x}]:{}", number % 5 + 1, 50_000 - number),
            );
            for (client, vip) in [(&v4, VIP), (&v6, VIP_V6)] {
                let (whole, pieces) = frames_of(client, vip);
                let options: Vec<_> = if vip == VIP {
                    whole[..2].iter().map(|frame| with_options(frame)).collect()
                } else {
                    Vec::new()
                };
                for frame in whole.iter().chain(&options) {
                    let queue = program.queue_of(frame).unwrap();
                    used.insert(queue);
                    let (verdict, _) = world.receive(queue as usize, Source::Tap, frame);
                    assert_eq!(
                        world.hops, 0,
                        "{client}, {workers} workers: {verdict:?} {frame:x?}"
                    );
                }
                // Fragments meet at one worker, and go to their owner from there at most once.
                for piece in &pieces {
                    let queue = program.queue_of(piece).unwrap();
                    let (from, to) = frames::ends(client, vip);
                    let meeting = steering.meeting(&address(from.ip()), &address(to.ip()));
                    assert_eq!(queue, u32::from(meeting), "{client}");
                    world.receive(queue as usize, Source::Tap, piece);
                    assert!(world.hops <= 1, "{client}: {} hand-overs", world.hops);
                }
            }
        }
        assert!(used.len() > usize::from(workers) / 2, "{} of {workers} are used", used.len());
        assert!(world.counters.totals().icmp_forwarded > 0, "errors had their flows");
    }
}

#[test]
fn whatever_the_packet_the_queue_is_one_there_is() {
    let steering = Steering::new(5, 0xdead_beef);
    let Some(program) = program(steering) else { return };
    let (mut valid, pieces) = frames_of("192.0.2.7:40000", VIP);
    valid.extend(pieces);
    let (v6, pieces) = frames_of("[2001:db8::7]:40000", VIP_V6);
    valid.extend(v6.into_iter().chain(pieces));
    let mut state = 7_u64;
    let mut random = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut frame = valid[random() % valid.len()].clone();
        for _ in 0..random() % 4 {
            let place = 14 + random() % (frame.len() - 14).min(80);
            frame[place] = random() as u8;
        }
        frame.truncate(15 + random() % frame.len());
        // The kernel does not run programs on some frames that are cut off in their headers.
        match program.queue_of(&frame) {
            Ok(queue) => assert!(queue < 5, "{queue}: {frame:x?}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused < 10_000, "{refused} frames were refused");
}

#[test]
fn ports_reach_the_programs_hash_in_the_order_of_the_rule() {
    // A swap of ports, which a hash over small numbers may hide, shows over many workers.
    let steering = Steering::new(u16::MAX, 99);
    let Some(program) = program(steering) else { return };
    for port in 1..500 {
        let client = format!("192.0.2.7:{port}");
        let frame = Tcp::syn(&client, VIP).frame();
        let (from, vip) = frames::ends(&client, VIP);
        let owner = steering.owner(&Tuple {
            client: &address(from.ip()),
            client_port: port,
            vip: &address(vip.ip()),
            vip_port: vip.port(),
            protocol: 6,
        });
        assert_eq!(program.queue_of(&frame).unwrap(), u32::from(owner));
    }
}
