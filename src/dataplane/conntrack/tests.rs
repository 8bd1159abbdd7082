//! The table against a naive model, and under floods.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;

use super::*;
use crate::dataplane::ids::VipId;

const SEED: [u64; 4] = [11, 22, 33, 44];

fn slots(capacity: usize) -> Arc<[Slot]> {
    (0..capacity).map(|_| Slot::default()).collect()
}

fn key(number: u32) -> FlowKey {
    let mut client = [0; 16];
    client[10..12].fill(0xff);
    client[12..].copy_from_slice(&number.to_be_bytes());
    let port = u16::try_from(number % 50_000).unwrap();
    FlowKey { client, client_port: port, vip: VipId(1), vip_port: 5432, protocol: 6 }
}

fn new_flow(number: u32) -> NewFlow {
    NewFlow {
        key: key(number),
        real: RealId(number % 7),
        destination: DestinationId(number % 7),
        rederived: false,
    }
}

fn segment(sequence: u32, payload: u32) -> TcpSegment {
    TcpSegment {
        sequence,
        acknowledgement: 900,
        payload,
        syn: false,
        ack: true,
        fin: false,
        rst: false,
    }
}

fn syn() -> Observation {
    Observation::Tcp(TcpSegment { syn: true, ack: false, ..segment(99, 0) })
}

fn ack() -> Observation {
    Observation::Tcp(segment(100, 0))
}

fn fin() -> Observation {
    Observation::Tcp(TcpSegment { fin: true, ..segment(100, 0) })
}

/// Enters a flow and brings it to established; ends 1 s after `now`.
fn establish(table: &mut FlowTable<Arc<[Slot]>>, now: Time, number: u32) -> Result<(), TableFull> {
    let timeouts = Timeouts::default();
    let flow = table.insert(now, &new_flow(number), &timeouts, &syn())?.flow;
    let _ = table.observe(flow, now, &timeouts, &ack());
    let later = now + Duration::from_millis(1100);
    let moved = table.observe(flow, later, &timeouts, &ack());
    assert_eq!(moved, Observed::Moved { from: Class::Unproven, to: Class::Established });
    Ok(())
}

/// What the model knows of a flow: its record, and when it entered its list.
#[derive(Clone, Copy)]
struct Entry {
    record: FlowRecord,
    rank: u64,
}

impl Entry {
    fn list(&self) -> Option<List> {
        list_of(self.record.progress.class, self.record.progress.proven)
    }
}

/// The table as one would write it without regard for cost.
#[derive(Default)]
struct Model {
    flows: HashMap<FlowKey, Entry>,
    clock: u64,
    epoch: u64,
}

impl Model {
    fn next_rank(&mut self) -> u64 {
        self.clock += 1;
        self.epoch << 40 | 1 << 33 | self.clock
    }

    /// Flows that the table may take as its next victim.
    fn victims(&self, now: Time) -> HashSet<FlowKey> {
        let now = Ticks::at(now);
        let of = |list| self.flows.values().filter(move |entry| entry.list() == Some(list));
        let list = EVICTION_ORDER.into_iter().find(|&list| of(list).next().is_some());
        let Some(list) = list else { return HashSet::new() };
        let oldest = of(list).map(|entry| entry.rank).min();
        let is_oldest = |entry: &&Entry| Some(entry.rank) == oldest;
        let age = |entry: &Entry| now.since(entry.record.progress.created);
        let begun_long_ago = |entry: &Entry| age(entry) >= HANDSHAKE;
        let mut victims: HashSet<FlowKey> =
            of(list).filter(is_oldest).map(|entry| entry.record.key).collect();
        if list != List::HalfOpen || !of(list).filter(is_oldest).all(begun_long_ago) {
            // Of several silent ones it takes the oldest, if it looks so far.
            let silent = |entry: &&Entry| now.since(entry.record.progress.last_seen) >= SILENCE;
            victims.extend(of(List::Closing).filter(silent).map(|entry| entry.record.key));
        }
        victims
    }

    fn check_against(&self, table: &FlowTable<Arc<[Slot]>>, now: Time) {
        for number in 0..KEYS {
            let expected = self
                .flows
                .get(&key(number))
                .filter(|entry| !entry.record.progress.is_expired(Ticks::at(now)));
            let found = table.lookup(now, &key(number)).map(|flow| table.record(flow));
            assert_eq!(found, expected.map(|entry| entry.record));
        }
        for class in Class::ALL {
            let expected = self.flows.values().filter(|e| e.record.progress.class == class).count();
            assert_eq!(table.counts().of(class) as usize, expected, "{class:?}");
        }
        for destination in self.flows.values().map(|entry| entry.record.destination) {
            let half_open = self.flows.values().filter(|entry| {
                entry.record.destination == destination && entry.list() == Some(List::HalfOpen)
            });
            assert_eq!(table.half_open_to(&[destination]) as usize, half_open.count());
        }
        let read: HashSet<FlowKey> =
            table.slots.iter().filter_map(|slot| slot.read().unwrap()).map(|r| r.key).collect();
        assert_eq!(read, self.flows.keys().copied().collect());
    }
}

const KEYS: u32 = 24;

#[derive(Clone, Copy, Debug)]
enum Step {
    Packet { number: u32, kind: u8, offset: u32 },
    Wait(u64),
    Sweep(u32),
    Remove(u32),
    Cut(u32),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0..KEYS, 0_u8..6, 0_u32..3)
            .prop_map(|(number, kind, offset)| Step::Packet { number, kind, offset }),
        4 => prop_oneof![0_u64..2000, 0_u64..70_000, Just(3_000_000)].prop_map(Step::Wait),
        2 => (0_u32..40).prop_map(Step::Sweep),
        1 => (0..KEYS).prop_map(Step::Remove),
        1 => (0_u32..7).prop_map(Step::Cut),
        1 => Just(Step::Restart),
    ]
}

fn observation(kind: u8, offset: u32) -> Observation {
    let base = segment(100 + offset, 0);
    Observation::Tcp(match kind {
        0 | 1 => TcpSegment { syn: true, ack: false, sequence: 99, ..base },
        2 => base,
        3 => TcpSegment { payload: 1, ..base },
        4 => TcpSegment { fin: true, ..base },
        _ => TcpSegment { rst: true, ..base },
    })
}

/// One packet, as the director would treat it.
fn packet(
    table: &mut FlowTable<Arc<[Slot]>>,
    model: &mut Model,
    now: Time,
    number: u32,
    observation: &Observation,
) {
    let timeouts = Timeouts::default();
    if let Some(flow) = table.lookup(now, &key(number)) {
        let observed = table.observe(flow, now, &timeouts, observation);
        let rank = model.next_rank();
        let entry = model.flows.get_mut(&key(number)).unwrap();
        let list = entry.list();
        assert_eq!(entry.record.progress.observe(now, &timeouts, observation), observed);
        if entry.list() != list {
            entry.rank = rank;
        }
        if observed != Observed::Restart {
            return;
        }
    }
    let victims = model.victims(now);
    let full = model.flows.len() == table.capacity();
    let same = model.flows.get(&key(number)).map(|entry| entry.record);
    match table.insert(now, &new_flow(number), &timeouts, observation) {
        Err(TableFull) => assert!(full && victims.is_empty() && same.is_none()),
        Ok(Inserted { flow, class, ended }) => {
            match (same, ended) {
                (Some(same), ended) => assert_eq!(ended.unwrap().record, same),
                (None, Some(ended)) => assert!(full && victims.contains(&ended.record.key)),
                (None, None) => assert!(!full),
            }
            if let Some(ended) = ended {
                let expired = ended.record.progress.is_expired(Ticks::at(now));
                assert_eq!(ended.reason == EndReason::Expired, expired);
                assert_eq!(model.flows.remove(&ended.record.key).unwrap().record, ended.record);
            }
            let record = table.record(flow);
            assert_eq!(record.progress, Progress::begin(now, &timeouts, observation));
            assert_eq!((record.key, class), (key(number), record.progress.class));
            let rank = model.next_rank();
            model.flows.insert(record.key, Entry { record, rank });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_the_model(capacity in 1_usize..20, steps in prop::collection::vec(step(), 1..300)) {
        let mut table = FlowTable::new(slots(capacity), SEED);
        let mut model = Model::default();
        let mut now = Time(5_000_000_000);
        for step in steps {
            match step {
                Step::Packet { number, kind, offset } => {
                    packet(&mut table, &mut model, now, number, &observation(kind, offset));
                }
                Step::Wait(milliseconds) => now = now + Duration::from_millis(milliseconds),
                Step::Sweep(budget) => {
                    let mut gone = Vec::new();
                    let ended = table.sweep(now, budget, |ended| gone.push(ended));
                    prop_assert_eq!(ended as usize, gone.len());
                    for ended in gone {
                        prop_assert_eq!(ended.reason, EndReason::Expired);
                        prop_assert!(ended.record.progress.is_expired(Ticks::at(now)));
                        let known = model.flows.remove(&ended.record.key).unwrap();
                        prop_assert_eq!(known.record, ended.record);
                    }
                }
                Step::Remove(number) => {
                    if let Some(flow) = table.lookup(now, &key(number)) {
                        let ended = table.remove(flow);
                        prop_assert_eq!(ended.reason, EndReason::Removed);
                        prop_assert!(model.flows.remove(&key(number)).is_some());
                    }
                }
                Step::Cut(real) => {
                    let mut cursor = Some(0);
                    while let Some(at) = cursor {
                        cursor = table.cut(at, 3, |r, _| r == RealId(real), |_| {});
                    }
                    model.flows.retain(|_, entry| entry.record.real != RealId(real));
                }
                Step::Restart => {
                    let region = Arc::clone(&table.slots);
                    drop(table);
                    let (adopted, report) =
                        FlowTable::adopt(region, [1, 2, 3, 4], now, |flow| Some(flow.destination));
                    table = adopted;
                    let before = model.flows.len();
                    model.flows.retain(|_, e| !e.record.progress.is_expired(Ticks::at(now)));
                    let counts = (report.adopted as usize, report.expired as usize);
                    prop_assert_eq!(counts, (model.flows.len(), before - model.flows.len()));
                    model.epoch += 1;
                    for entry in model.flows.values_mut() {
                        entry.rank = model.epoch << 40 | u64::from(entry.record.progress.created.0);
                    }
                }
            }
            model.check_against(&table, now);
        }
        // Nothing is lost: all the memory comes back.
        now = now + Duration::from_secs(100_000);
        table.sweep(now, u32::MAX, |_| {});
        prop_assert_eq!(table.counts().total(), 0);
        for number in 0..u32::try_from(capacity).unwrap() {
            prop_assert!(establish(&mut table, now, number).is_ok());
        }
        prop_assert_eq!(establish(&mut table, now, 1000), Err(TableFull));
    }
}

/// A session that is established, and over at `now` plus two seconds.
fn close(table: &mut FlowTable<Arc<[Slot]>>, now: Time, number: u32) {
    establish(table, now, number).unwrap();
    let flow = table.lookup(now, &key(number)).unwrap();
    let _ = table.observe(flow, now + Duration::from_secs(2), &Timeouts::default(), &fin());
}

#[test]
fn a_handshake_under_way_outlives_sessions_that_are_over_and_not_those_that_say_more() {
    let timeouts = Timeouts::default();
    let begin = |table: &mut FlowTable<Arc<[Slot]>>, now, number| {
        table.insert(now, &new_flow(number), &timeouts, &syn()).unwrap().ended.map(|e| e.record.key)
    };
    let start = Time(5_000_000_000);
    let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
    let mut table = FlowTable::new(slots(5), SEED);
    for number in 0..3 {
        close(&mut table, start, number);
    }
    // The oldest is still acknowledging what the server sends.
    let flow = table.lookup(at(6.5), &key(0)).unwrap();
    let _ = table.observe(flow, at(6.5), &timeouts, &ack());
    assert_eq!(begin(&mut table, at(7.2), 10), None);
    assert_eq!(begin(&mut table, at(7.3), 11), None);
    assert_eq!(begin(&mut table, at(7.4), 12), Some(key(1)), "silent, the oldest of these");
    assert_eq!(begin(&mut table, at(7.5), 13), Some(key(2)));
    assert_eq!(begin(&mut table, at(7.6), 14), Some(key(10)), "no other is silent");
    assert_eq!(begin(&mut table, at(9.0), 15), Some(key(11)), "no answer in a second");
    let flow = table.lookup(at(9.0), &key(0)).unwrap();
    assert_eq!(table.record(flow).progress.class, Class::ClosingFin);
}

/// A generator for the simulations: splitmix64, seeded.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        u32::try_from((mixed ^ mixed >> 31) % u64::from(bound)).unwrap()
    }
}

const FLOOD_CAPACITY: u32 = 20_000;
const ESTABLISHED: u32 = FLOOD_CAPACITY * 9 / 10;
/// Attackers' keys and newcomers' keys lie in ranges of their own.
const ATTACKERS: u32 = 0x4000_0000;
const NEWCOMERS: u32 = 0x8000_0000;

/// Runs 20 s of a flood of `per_second` spoofed clients against a table that is 90 % full of
/// established flows, with ten newcomers a second. Returns the share of newcomers that became
/// established.
fn flood(per_second: u32, spoofed: &[Observation]) -> f64 {
    let timeouts = Timeouts::default();
    let mut table = FlowTable::new(slots(FLOOD_CAPACITY as usize), SEED);
    let mut random = Random(7);
    let start = Time(1_000_000_000);
    for number in 0..ESTABLISHED {
        establish(&mut table, start, number).unwrap();
    }
    let mut newcomers: Vec<(u32, Time)> = Vec::new();
    let step = Duration::from_millis(20);
    let mut now = start + Duration::from_secs(2);
    for round in 0_u32..1000 {
        now = now + step;
        for _ in 0..per_second / 50 {
            let flow = new_flow(ATTACKERS + random.below(1 << 29));
            if table.lookup(now, &flow.key).is_some() {
                continue;
            }
            let (first, rest) = spoofed.split_first().unwrap();
            let entered = table.insert(now, &flow, &timeouts, first).unwrap();
            for packet in rest {
                let _ = table.observe(entered.flow, now, &timeouts, packet);
            }
        }
        if round % 5 == 0 {
            let number = NEWCOMERS + round;
            let entered = table.insert(now, &new_flow(number), &timeouts, &syn()).unwrap();
            let _ = table.observe(entered.flow, now, &timeouts, &ack());
            newcomers.push((number, now));
        }
        for &(number, began) in &newcomers {
            // A segment every 100 ms or so, met in its middle if the flow was evicted.
            if now.saturating_since(began) < Duration::from_secs(3) && random.below(5) == 0 {
                match table.lookup(now, &key(number)) {
                    Some(flow) => {
                        let _ = table.observe(flow, now, &timeouts, &ack());
                    }
                    None => {
                        let again = table.insert(now, &new_flow(number), &timeouts, &ack());
                        assert!(again.is_ok(), "newcomers always get in");
                    }
                }
            }
        }
        table.sweep(now, 10_000, |ended| {
            assert_eq!(ended.reason, EndReason::Expired);
        });
    }
    let is_established = |number| {
        let flow = table.lookup(now, &key(number));
        flow.is_some_and(|flow| table.record(flow).progress.class == Class::Established)
    };
    assert!((0..ESTABLISHED).all(is_established), "an established flow was evicted");
    let old: Vec<_> =
        newcomers.iter().filter(|(_, began)| *began + 3 * Duration::from_secs(1) < now).collect();
    let proven = old.iter().filter(|(number, _)| is_established(*number)).count();
    f64::from(u32::try_from(proven).unwrap()) / f64::from(u32::try_from(old.len()).unwrap())
}

#[test]
fn a_half_open_flood_evicts_no_established_flow_and_hinders_no_newcomer() {
    let share = flood(20_000, &[syn()]);
    assert!(share >= 1.0, "{share}");
}

#[test]
fn a_flood_of_syn_and_ack_pairs_evicts_no_established_flow() {
    // Newcomers need one second to prove themselves; this flood turns the free tenth over in two.
    let share = flood(1_000, &[syn(), ack()]);
    assert!(share >= 1.0, "{share}");
    // This one does so in 100 ms: nobody can prove himself, but everybody is let in.
    flood(20_000, &[syn(), ack()]);
}

#[test]
fn spoofed_closings_buy_no_better_place() {
    flood(10_000, &[syn(), ack(), fin()]);
}

#[test]
fn a_proven_flow_that_closes_outlives_a_spoofed_one() {
    let timeouts = Timeouts::default();
    let start = Time(1_000_000_000);
    let mut table = FlowTable::new(slots(3), SEED);
    establish(&mut table, start, 1).unwrap();
    let now = start + Duration::from_secs(1);
    let flow = table.lookup(now, &key(1)).unwrap();
    let _ = table.observe(flow, now, &timeouts, &fin());
    for number in [2, 3] {
        let spoofed = table.insert(now, &new_flow(number), &timeouts, &syn()).unwrap().flow;
        let _ = table.observe(spoofed, now, &timeouts, &ack());
        let _ = table.observe(spoofed, now, &timeouts, &fin());
    }
    let mut evicted = |number| {
        let entered = table.insert(now, &new_flow(number), &timeouts, &ack()).unwrap();
        entered.ended.unwrap().record.key
    };
    // The spoofed ones go first although they are younger, then the newest of the unproven; the
    // closing one only when nothing else is left.
    assert_eq!([evicted(4), evicted(5), evicted(6)], [key(2), key(3), key(4)]);
    for number in [5, 6] {
        let flow = table.lookup(now, &key(number)).unwrap();
        let _ = table.remove(flow);
        establish(&mut table, now, number + 10).unwrap();
    }
    let entered = table.insert(now, &new_flow(20), &timeouts, &syn()).unwrap();
    assert_eq!(entered.ended.unwrap().record.key, key(1));
}

#[test]
fn another_capacity_takes_the_proven_first() {
    let timeouts = Timeouts::default();
    let now = Time(9_000_000_000);
    let mut old = FlowTable::new(slots(40), SEED);
    for number in 0..10 {
        establish(&mut old, now, number).unwrap();
    }
    for number in 10..40 {
        let _ = old.insert(now, &new_flow(number), &timeouts, &syn()).unwrap();
    }
    let later = now + Duration::from_secs(2);
    let mut new = FlowTable::new(slots(15), SEED);
    let report =
        new.reinsert_from(old.slots.iter(), later, |flow| Some(flow.destination), |_| true);
    assert_eq!((report.adopted, report.no_room), (15, 25));
    assert_eq!(new.counts().of(Class::Established), 10);
    for number in 0..10 {
        let flow = new.lookup(later, &key(number)).unwrap();
        assert_eq!(new.record(flow), old.record(old.lookup(later, &key(number)).unwrap()));
    }

    // Two workers share them out; nobody is lost, nobody is there twice.
    let mut halves = [FlowTable::new(slots(40), SEED), FlowTable::new(slots(40), SEED)];
    for (worker, half) in (0_u16..).zip(&mut halves) {
        let is_ours = |flow: &FlowRecord| flow.key.client_port % 2 == worker;
        half.reinsert_from(old.slots.iter(), later, |flow| Some(flow.destination), is_ours);
    }
    for number in 0..40 {
        let found = halves.iter().filter(|half| half.lookup(later, &key(number)).is_some());
        assert_eq!(found.count(), 1);
    }
}

#[test]
fn adoption_names_what_it_refuses() {
    let timeouts = Timeouts::default();
    let now = Time(9_000_000_000);
    let mut old = FlowTable::new(slots(8), SEED);
    for number in 0..6 {
        let _ = old.insert(now, &new_flow(number), &timeouts, &syn()).unwrap();
    }
    let region = Arc::clone(&old.slots);
    let record = |number| old.record(old.lookup(now, &key(number)).unwrap());
    // The key of flow 1 a second time, in a slot that was free.
    region[7].publish(&record(1));
    let mut future = record(2);
    future.progress.last_seen = Ticks::at(now + Duration::from_secs(5));
    region[old.lookup(now, &key(2)).unwrap().0 as usize].publish(&future);
    let mut stale = record(3);
    stale.progress.idle_limit = Ticks(0);
    region[old.lookup(now, &key(3)).unwrap().0 as usize].publish(&stale);
    let resolve = |flow: &FlowRecord| (flow.real != RealId(4)).then_some(DestinationId(77));
    let (table, report) = FlowTable::adopt(region, SEED, now + Duration::from_secs(1), resolve);
    let expected = AdoptionReport {
        adopted: 3,
        expired: 1,
        times: 1,
        unknown_target: 1,
        duplicate: 1,
        ..AdoptionReport::default()
    };
    assert_eq!(report, expected);
    assert_eq!(table.counts().total(), 3);
    let flow = table.lookup(now, &key(0)).unwrap();
    assert_eq!(table.destination(flow), DestinationId(77));
}

#[test]
fn a_sweep_keeps_its_budget() {
    let timeouts = Timeouts::default();
    let mut table = FlowTable::new(slots(1000), SEED);
    for number in 0..1000 {
        let _ = table.insert(Time::ZERO, &new_flow(number), &timeouts, &syn()).unwrap();
    }
    let later = Time::ZERO + Duration::from_secs(60);
    assert!(table.sweep(later, 130, |_| {}) <= 10);
    let calls = (0..1000).take_while(|_| table.sweep(later, 130, |_| {}) > 0).count();
    assert!(table.counts().total() == 0 && calls >= 99);
}

#[test]
fn the_sweep_keeps_its_pace() {
    let timeouts = Timeouts::default();
    let capacity = 40_000;
    let mut table = FlowTable::new(slots(capacity as usize), SEED);
    let fill = |table: &mut FlowTable<Arc<[Slot]>>, now| {
        for number in 0..capacity {
            let _ = table.insert(now, &new_flow(number), &timeouts, &syn()).unwrap();
        }
    };
    let start = Time(1_000_000_000);
    fill(&mut table, start);
    // Long after: one call does not do it all.
    let mut now = start + Duration::from_secs(60);
    let first = table.sweep_due(now, |_| {});
    assert!(first > 0 && first <= SWEEP_BUDGET / 12, "{first}");
    assert_eq!(table.sweep_due(now, |_| {}), 0, "not due again in the same millisecond");
    let mut busy = 1;
    while table.counts().total() > 0 {
        now = now + Duration::from_micros(300);
        table.sweep_due(now, |_| {});
        busy += 1;
    }
    let spent = now.saturating_since(start + Duration::from_secs(60));
    assert!(
        spent > Duration::from_millis(500) && spent < Duration::from_secs(2),
        "{spent:?} {busy}"
    );

    // Ticks alone are enough as well, and what lives stays.
    fill(&mut table, now);
    for _ in 0..20 {
        now = now + Duration::from_millis(50);
        assert_eq!(table.sweep_due(now, |_| {}), 0);
    }
    now = now + Duration::from_secs(60);
    let ticks = (0..1000).take_while(|_| {
        now = now + Duration::from_millis(50);
        table.sweep_due(now, |_| {});
        table.counts().total() > 0
    });
    assert!(ticks.count() < 200);
}

#[test]
fn memory_is_told_as_it_is() {
    let memory = memory_for(1_000_000);
    assert_eq!(memory.slots, 64_000_000);
    assert_eq!(memory.index, 131_072 * 64);
    assert_eq!(memory.links, 8_000_000);
    assert!(memory.total() / 1_000_000 <= 81);
}
