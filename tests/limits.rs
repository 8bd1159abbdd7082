//! Limits on what a service takes of new flows, and what a flood does to a table that is nearly full.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod world;

use std::{net::IpAddr, sync::Arc, time::Duration};

use adit::dataplane::{
    admission::{Admission, AdmissionPolicy, ClientRate},
    ids::DestinationId,
    rate_limit::Rate,
    scheduler::{Member, SchedulerKind},
    service::Protocol,
    verdict::{DropReason, Verdict},
};
use world::{ServiceSpec, World, frames, frames::Tcp, snapshot};

const VIP: &str = "198.51.100.10:5432";

fn limited(scheduler: SchedulerKind, policy: AdmissionPolicy) -> ServiceSpec {
    let admission = Some(Arc::new(Admission::new(policy, [1, 2, 3, 4])));
    ServiceSpec { admission, ..ServiceSpec::orders(scheduler) }
}

fn a_second(per_second: u32) -> Rate {
    Rate { per_second, burst: per_second }
}

/// The real server a frame went to, or why it went nowhere.
fn server(world: &mut World, frame: &[u8]) -> Result<IpAddr, Verdict> {
    let outcome = world.receive(frame);
    let Verdict::Forward { .. } = outcome.verdict else { return Err(outcome.verdict) };
    Ok(adit_tunnel::decapsulate(&outcome.outputs[0].bytes[14..]).unwrap().outer.destination)
}

fn syn(world: &mut World, client: &str) -> Result<IpAddr, Verdict> {
    server(world, &Tcp::syn(client, VIP).frame())
}

#[test]
fn new_flows_are_limited_and_known_ones_never() {
    let client = ClientRate { rate: a_second(2), ipv4_prefix: 32, ipv6_prefix: 64 };
    let policy =
        AdmissionPolicy { total: Some(a_second(5)), client: Some(client), half_open: None };
    let mut world = World::new(snapshot(vec![limited(SchedulerKind::Maglev, policy)]), 1000);
    let refused = |reason| Err(Verdict::Drop(reason));
    let first = syn(&mut world, "192.0.2.1:4001").unwrap();
    syn(&mut world, "192.0.2.1:4002").unwrap();
    assert_eq!(syn(&mut world, "192.0.2.1:4003"), refused(DropReason::ClientLimited));
    for last in 2..5 {
        syn(&mut world, &format!("192.0.2.{last}:4000")).unwrap();
    }
    assert_eq!(syn(&mut world, "192.0.2.9:4000"), refused(DropReason::ServiceLimited));
    // A SYN that comes again and every other segment of a known flow.
    assert_eq!(syn(&mut world, "192.0.2.1:4001"), Ok(first));
    for offset in 0..9 {
        let data = Tcp::data("192.0.2.1:4001", VIP, offset, b"x").frame();
        assert_eq!(server(&mut world, &data), Ok(first));
    }
    // A session that an earlier director had, in its middle: a guess, for each of hundreds.
    for port in 1..500 {
        let data = Tcp::data(&format!("192.0.2.1:{port}"), VIP, 0, b"x").frame();
        server(&mut world, &data).unwrap();
    }
    world.advance(Duration::from_secs(1));
    syn(&mut world, "192.0.2.9:4000").unwrap();
    let dropped = |reason| world.counters.dropped(reason).get();
    assert_eq!(dropped(DropReason::ClientLimited), 1);
    assert_eq!(dropped(DropReason::ServiceLimited), 1);
    assert!(world.counters.ledger_balances());
}

#[test]
fn first_datagrams_are_limited_and_later_ones_not() {
    let policy = AdmissionPolicy { total: Some(a_second(3)), ..AdmissionPolicy::default() };
    let spec = ServiceSpec { protocol: Protocol::Udp, ..limited(SchedulerKind::Maglev, policy) };
    let mut world = World::new(snapshot(vec![spec]), 1000);
    for _ in 0..50 {
        server(&mut world, &frames::udp("192.0.2.1:4001", VIP, b"x")).unwrap();
    }
    let more: Vec<_> = (2..7)
        .map(|last| server(&mut world, &frames::udp(&format!("192.0.2.{last}:4001"), VIP, b"x")))
        .collect();
    assert_eq!(more.iter().filter(|to| to.is_ok()).count(), 2, "{more:?}");
}

#[test]
fn beyond_its_limit_a_services_oldest_half_open_flow_gives_way() {
    let policy = AdmissionPolicy { half_open: Some(3), ..AdmissionPolicy::default() };
    let other = ServiceSpec { vip: "198.51.100.11", ..ServiceSpec::orders(SchedulerKind::Wrr) };
    let mut world = World::new(snapshot(vec![limited(SchedulerKind::Wrr, policy), other]), 1000);
    // Of the other service, and older than any: not asked to give way.
    for port in 1..20 {
        let frame = Tcp::syn(&format!("192.0.2.1:{port}"), "198.51.100.11:5432").frame();
        server(&mut world, &frame).unwrap();
    }
    let owner = syn(&mut world, "192.0.2.2:1").unwrap();
    let data = Tcp::data("192.0.2.2:1", VIP, 0, b"x").frame();
    assert_eq!(server(&mut world, &data), Ok(owner), "no more half-open");
    for port in 2..12 {
        syn(&mut world, &format!("192.0.2.2:{port}")).unwrap();
    }
    assert_eq!(world.counters.worker.gave_way.get(), 7);
    let inactive: u64 = world.counters.destinations.iter().map(|d| d.inactive.get()).sum();
    assert_eq!(inactive, 19 + 1 + 3);
    // The scheduler takes turns and cannot guess: who has no entry is reset, who has goes on.
    let has_entry = |world: &mut World, port: u16| {
        let data = Tcp::data(&format!("192.0.2.2:{port}"), VIP, 0, b"x").frame();
        server(world, &data).is_ok()
    };
    let kept: Vec<u16> = (1..12).filter(|port| has_entry(&mut world, *port)).collect();
    assert_eq!(kept, [1, 9, 10, 11]);
    assert!(world.counters.ledger_balances());
}

#[test]
fn a_service_none_of_whose_flows_can_be_found_goes_without_an_entry_or_is_refused() {
    for (scheduler, forwarded) in [(SchedulerKind::Maglev, true), (SchedulerKind::Wrr, false)] {
        let policy = AdmissionPolicy { half_open: Some(1), ..AdmissionPolicy::default() };
        let other = ServiceSpec { vip: "198.51.100.11", ..ServiceSpec::orders(SchedulerKind::Wrr) };
        let mut world = World::new(snapshot(vec![limited(scheduler, policy), other]), 1000);
        for port in 1..100 {
            let frame = Tcp::syn(&format!("192.0.2.1:{port}"), "198.51.100.11:5432").frame();
            server(&mut world, &frame).unwrap();
        }
        syn(&mut world, "192.0.2.2:1").unwrap();
        let second = syn(&mut world, "192.0.2.2:2");
        assert_eq!(second.is_ok(), forwarded, "{}", scheduler.name());
        assert_eq!(world.counters.worker.untracked_half_open.get(), u64::from(forwarded));
        let refused = world.counters.dropped(DropReason::HalfOpenLimited).get();
        assert_eq!(refused, u64::from(!forwarded));
        if let Ok(placed) = second {
            let data = Tcp::data("192.0.2.2:2", VIP, 0, b"x").frame();
            assert_eq!(server(&mut world, &data), Ok(placed), "the guess agrees");
        }
    }
}

/// A real server that drains is guessed for what is met in its middle, and takes no new flows: a SYN
/// that goes without an entry must go where its next segment does, or nowhere.
#[test]
fn what_goes_without_an_entry_goes_on_where_it_began() {
    let policy = AdmissionPolicy { half_open: Some(1), ..AdmissionPolicy::default() };
    let other = ServiceSpec { vip: "198.51.100.11", ..ServiceSpec::orders(SchedulerKind::Wrr) };
    let mut spec = limited(SchedulerKind::Maglev, policy);
    spec.members[0].draining = true;
    let mut world = World::new(snapshot(vec![spec, other]), 1000);
    for port in 1..100 {
        let frame = Tcp::syn(&format!("192.0.2.1:{port}"), "198.51.100.11:5432").frame();
        server(&mut world, &frame).unwrap();
    }
    syn(&mut world, "192.0.2.2:1").unwrap();
    let (mut served, mut refused) = (0, 0);
    for port in 2..66 {
        let client = format!("192.0.2.2:{port}");
        let Ok(placed) = syn(&mut world, &client) else {
            refused += 1;
            continue;
        };
        let data = Tcp::data(&client, VIP, 0, b"x").frame();
        assert_eq!(server(&mut world, &data), Ok(placed), "{client}");
        served += 1;
    }
    assert!(served > 5 && refused > 5, "{served} {refused}");
    assert_eq!(world.counters.dropped(DropReason::HalfOpenLimited).get(), refused);
    assert!(world.counters.ledger_balances());
}

/// A connection that begins anew, with the ports of one that is closing, is another.
#[test]
fn what_goes_without_an_entry_leaves_none_of_the_connection_before() {
    let policy = AdmissionPolicy { half_open: Some(1), ..AdmissionPolicy::default() };
    let other = ServiceSpec { vip: "198.51.100.11", ..ServiceSpec::orders(SchedulerKind::Wrr) };
    let mut world = World::new(snapshot(vec![limited(SchedulerKind::Maglev, policy), other]), 1000);
    syn(&mut world, "192.0.2.2:2").unwrap();
    server(&mut world, &Tcp { fin: true, ..Tcp::data("192.0.2.2:2", VIP, 0, b"x") }.frame())
        .unwrap();
    for port in 1..100 {
        let frame = Tcp::syn(&format!("192.0.2.1:{port}"), "198.51.100.11:5432").frame();
        server(&mut world, &frame).unwrap();
    }
    syn(&mut world, "192.0.2.2:1").unwrap();
    let entries = |world: &World| -> u64 {
        (0..world.snapshot.destinations.len())
            .map(|id| world.counters.flows_to(DestinationId(u32::try_from(id).unwrap())))
            .sum()
    };
    let before = entries(&world);
    syn(&mut world, "192.0.2.2:2").unwrap();
    assert_eq!(world.counters.worker.untracked_half_open.get(), 1);
    assert_eq!(entries(&world), before - 1, "the closing connection's is gone");
}

/// xorshift64*, so that a seed is a run.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }
}

/// A client that connects, waits its round trip, says something twice over two seconds, and leaves.
struct Legitimate {
    client: String,
    server: Result<IpAddr, Verdict>,
    next: u64,
    said: u32,
}

const TABLE: usize = 2000;
const ESTABLISHED: usize = TABLE * 9 / 10;
const STEP: Duration = Duration::from_millis(5);
/// A spoofed SYN at each step, a legitimate one at every tenth: ten times as many.
const STEPS: u64 = 20_000 / 5;

/// New clients, and those of them that were served from the first to the last segment.
fn flood(scheduler: SchedulerKind, half_open: Option<u32>, seed: u64) -> (usize, usize) {
    let policy = AdmissionPolicy { half_open, ..AdmissionPolicy::default() };
    let mut spec = limited(scheduler, policy);
    spec.members = (1..=4).map(|n| Member::up(IpAddr::from([10, 20, 0, n]), 100)).collect();
    let mut world = World::new(snapshot(vec![spec]), TABLE);
    let sessions: Vec<(String, IpAddr)> = (0..ESTABLISHED)
        .map(|n| {
            let client = format!("198.18.{}.{}:4000", n / 250, 1 + n % 250);
            let owner = syn(&mut world, &client).unwrap();
            // The handshake ends at once: there may be fewer half-open ones than these.
            let data = Tcp::data(&client, VIP, 0, b"x").frame();
            assert_eq!(server(&mut world, &data), Ok(owner));
            (client, owner)
        })
        .collect();
    for offset in 1..3 {
        world.advance(Duration::from_secs(1));
        for (client, owner) in &sessions {
            let data = Tcp::data(client, VIP, offset, b"x").frame();
            assert_eq!(server(&mut world, &data).as_ref(), Ok(owner));
        }
    }
    let active: u64 = world.counters.destinations.iter().map(|d| d.active.get()).sum();
    assert_eq!(active as usize, ESTABLISHED);

    let mut draws = Draws(seed);
    let mut clients: Vec<Legitimate> = Vec::new();
    let (mut new, mut served) = (0, 0);
    for step in 0..STEPS {
        world.advance(STEP);
        world.tick();
        let (source, port) = (draws.below(1 << 24), 1024 + draws.below(60_000));
        let spoofed =
            format!("{}:{port}", IpAddr::from((0x1600_0000 | source as u32).to_be_bytes()));
        let _ = syn(&mut world, &spoofed);
        if step % 10 == 0 {
            new += 1;
            let client = format!("203.0.113.{}:{}", 1 + new % 250, 2000 + new / 250);
            let server = syn(&mut world, &client);
            // A round trip of 20 to 200 ms.
            let next = step + 4 + draws.below(37);
            clients.push(Legitimate { client, server, next, said: 0 });
        }
        clients.retain_mut(|c| {
            if c.next > step {
                return true;
            }
            let data = Tcp::data(&c.client, VIP, c.said, b"x");
            let done = c.said == 4;
            let frame = if done { Tcp { fin: true, ..data }.frame() } else { data.frame() };
            let right = c.server.is_ok() && server(&mut world, &frame) == c.server;
            served += usize::from(right && done);
            (c.said, c.next) = (c.said + 1, step + 100);
            right && !done
        });
        let (client, owner) = &sessions[step as usize % ESTABLISHED];
        let again = Tcp::data(client, VIP, 3 + step as u32 / ESTABLISHED as u32, b"x").frame();
        assert_eq!(server(&mut world, &again).as_ref(), Ok(owner), "an established session broke");
    }
    for (client, owner) in &sessions {
        let last = Tcp::data(client, VIP, 100, b"x").frame();
        assert_eq!(server(&mut world, &last).as_ref(), Ok(owner), "an established session broke");
    }
    assert!(world.counters.ledger_balances());
    // Those that have not yet come to their end are not counted.
    (new as usize - clients.len(), served)
}

#[test]
fn a_flood_at_ten_times_the_rate_breaks_no_session_and_keeps_few_clients_out() {
    for seed in 1..=2 {
        for scheduler in [SchedulerKind::Maglev, SchedulerKind::Wrr] {
            for half_open in [None, Some(100)] {
                let (new, served) = flood(scheduler, half_open, seed);
                let case = (scheduler.name(), half_open, seed, new, served);
                assert!(new > 300, "{case:?}");
                assert!(served * 100 >= new * 95, "{case:?}");
            }
        }
    }
}
