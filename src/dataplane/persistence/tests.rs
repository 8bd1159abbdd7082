//! The table against a plain model, and what it must never do.

use std::{collections::BTreeMap, net::IpAddr};

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn region(capacity: usize) -> Vec<Entry> {
    (0..capacity).map(|_| Entry::default()).collect()
}

fn empty(capacity: usize) -> PersistenceTable<Vec<Entry>> {
    let (table, report) =
        PersistenceTable::adopt(region(capacity), [1, 2, 3, 4], Time::ZERO, |_| true);
    assert_eq!(report, PersistenceAdoption::default());
    table
}

fn key(client: u8) -> PersistenceKey {
    let address = IpAddr::from([192, 0, 2, client]);
    PersistenceKey { client: ClientPrefix::new(address, 32, 64), group: PersistenceGroup(7) }
}

fn event(client: u8, real: u32, seconds: u64, timeout: u64) -> PersistenceEvent {
    PersistenceEvent {
        key: key(client),
        real: RealId(real),
        timeout: Duration::from_secs(timeout),
        at: Time::ZERO + SECOND * seconds as u32,
    }
}

fn at(seconds: u32) -> Time {
    Time::ZERO + SECOND * seconds
}

/// Where a client is kept when all real servers are usable.
fn kept_at(table: &PersistenceTable<Vec<Entry>>, now: Time, key: &PersistenceKey) -> Option<u32> {
    table.index().lookup(now, key.group, &key.client, |real| Some(real.0))
}

#[derive(Clone, Debug)]
enum Step {
    Record { client: u8, real: u32, timeout: u32 },
    Wait(u32),
    Sweep(usize),
    Forget(u32),
    Restart,
}

fn some_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..12u8, 0..3u32, 1..20u32)
            .prop_map(|(client, real, timeout)| Step::Record { client, real, timeout }),
        3 => (0..8u32).prop_map(Step::Wait),
        1 => (0..4usize).prop_map(Step::Sweep),
        1 => (0..3u32).prop_map(Step::Forget),
        1 => Just(Step::Restart),
    ]
}

/// The plainest thing that could be right. Times are in ticks; a record is made at a multiple of
/// 128 of them and ends a number of uses (below 128) behind one, so that no two ends are alike.
#[derive(Default)]
struct Model {
    entries: BTreeMap<u8, ModelEntry>,
    uses: u32,
}

struct ModelEntry {
    real: u32,
    used: u32,
    expires: u32,
}

impl Model {
    /// Enters a record and returns how long it lasts.
    fn record(&mut self, capacity: usize, client: u8, real: u32, now: u32, timeout: u32) -> u32 {
        self.entries.retain(|_, entry| entry.expires > now);
        if !self.entries.contains_key(&client) && self.entries.len() == capacity {
            let oldest = *self.entries.iter().min_by_key(|(_, entry)| entry.used).unwrap().0;
            self.entries.remove(&oldest);
        }
        self.uses += 1;
        let lasts = timeout * 128 + self.uses;
        self.entries.insert(client, ModelEntry { real, used: self.uses, expires: now + lasts });
        lasts
    }

    /// The order of use is not kept: the order of ends takes its place.
    fn restart(&mut self) {
        let mut by_end: Vec<&mut ModelEntry> = self.entries.values_mut().collect();
        by_end.sort_by_key(|entry| entry.expires);
        for entry in by_end {
            // Used before all that come, in this order.
            entry.used = self.uses;
            self.uses += 1;
        }
    }

    fn lookup(&self, client: u8, now: u32) -> Option<u32> {
        self.entries.get(&client).filter(|entry| entry.expires > now).map(|entry| entry.real)
    }
}

proptest! {
    #[test]
    fn the_table_does_what_the_model_does(steps in prop::collection::vec(some_step(), 1..60)) {
        const CAPACITY: usize = 6;
        let moment = |ticks: u32| Time::ZERO + Ticks(ticks).to_duration();
        let mut table = empty(CAPACITY);
        let (mut model, mut now) = (Model::default(), 128);
        for step in steps {
            match step {
                Step::Record { client, real, timeout } => {
                    let lasts = model.record(CAPACITY, client, real, now, timeout);
                    table.record(&PersistenceEvent {
                        key: key(client),
                        real: RealId(real),
                        timeout: Ticks(lasts).to_duration(),
                        at: moment(now),
                    });
                }
                Step::Wait(units) => now += units * 128,
                Step::Sweep(budget) => {
                    table.sweep(moment(now), budget);
                }
                Step::Forget(real) => {
                    table.forget(RealId(real));
                    model.entries.retain(|_, entry| entry.real != real);
                }
                Step::Restart => {
                    let region = std::mem::take(&mut table.region);
                    let (next, report) =
                        PersistenceTable::adopt(region, [5; 4], moment(now), |_| true);
                    prop_assert_eq!((report.invalid, report.duplicate), (0, 0));
                    table = next;
                    model.restart();
                }
            }
            for client in 0..12 {
                let found = kept_at(&table, moment(now), &key(client));
                prop_assert_eq!(found, model.lookup(client, now), "client {} at {}", client, now);
            }
            prop_assert_eq!(table.entries().count(), table.len());
            prop_assert_eq!(table.len() + table.free.len(), CAPACITY);
        }
    }
}

#[test]
fn an_expired_entry_goes_before_the_oldest() {
    let mut table = empty(3);
    table.record(&event(1, 10, 1, 1000));
    table.record(&event(2, 20, 2, 5));
    table.record(&event(3, 30, 3, 1000));
    table.record(&event(4, 40, 10, 1000));
    let found = |table: &PersistenceTable<_>| -> Vec<u8> {
        (1..=5).filter(|&client| kept_at(table, at(11), &key(client)).is_some()).collect()
    };
    assert_eq!(found(&table), [1, 3, 4]);
    // Nothing expired now: client 1 has not come for longest, unless it comes again.
    table.record(&event(1, 10, 11, 1000));
    table.record(&event(5, 50, 11, 1000));
    assert_eq!(found(&table), [1, 4, 5]);
    let counters = table.counters();
    assert_eq!((counters.evicted_expired, counters.evicted_oldest), (1, 1));
    assert_eq!((counters.created, counters.refreshed, counters.moved), (5, 1, 0));
}

#[test]
fn a_client_is_never_kept_where_the_caller_refuses() {
    let mut table = empty(4);
    table.record(&event(1, 10, 1, 100));
    assert_eq!(kept_at(&table, at(2), &key(1)), Some(10));
    let refused = table.index().lookup(at(2), key(1).group, &key(1).client, |_| None::<u32>);
    assert_eq!(refused, None);
    assert_eq!(kept_at(&table, Time(at(101).0 - 1), &key(1)), Some(10));
    assert_eq!(kept_at(&table, at(101), &key(1)), None);
    // Its next flow went elsewhere: the client follows.
    table.record(&event(1, 20, 3, 100));
    assert_eq!(kept_at(&table, at(4), &key(1)), Some(20));
    assert_eq!(table.counters().moved, 1);
}

#[test]
fn clients_and_groups_are_kept_apart() {
    let mut table = empty(8);
    let address: IpAddr = "192.0.2.1".parse().unwrap();
    let of = |length, group| PersistenceKey {
        client: ClientPrefix::new(address, length, 64),
        group: PersistenceGroup(group),
    };
    let keys = [of(32, 1), of(24, 1), of(32, 2)];
    for (real, key) in (0..).zip(keys) {
        table.record(&PersistenceEvent { key, ..event(0, real, 1, 100) });
    }
    for (real, key) in (0..).zip(keys) {
        assert_eq!(kept_at(&table, at(2), &key), Some(real));
    }
}

#[test]
fn adoption_believes_only_what_it_can_check() {
    let mut table = empty(8);
    for client in 1..=5 {
        table.record(&event(client, u32::from(client), u64::from(client), 100));
    }
    table.record(&event(6, 6, 6, 10));
    let mut region = table.region;
    // Client 2's entry is torn, client 3's real server is gone, client 6's time is over, a second
    // entry of client 4 ends sooner, client 5's has bits beyond its prefix.
    zerocopy::IntoBytes::as_mut_bytes(&mut region[1])[17] ^= 1;
    let of = |client: u8| PersistenceIdentity {
        prefix: key(client).client.octets(),
        prefix_length: 128,
        group: 7,
        real: RealId(u32::from(client)),
    };
    of(4).write_until(&region[6], ticks_until(at(90)));
    PersistenceIdentity { prefix_length: 120, ..of(5) }
        .write_until(&region[4], ticks_until(at(99)));
    let (table, report) = PersistenceTable::adopt(region, [9; 4], at(20), |real| real != RealId(3));
    let expected = PersistenceAdoption {
        adopted: 2,
        expired: 1,
        invalid: 2,
        unknown_real: 1,
        duplicate: 1,
        no_room: 0,
    };
    assert_eq!(report, expected);
    let kept: Vec<(u32, Time)> =
        table.entries().map(|entry| (entry.real.0, entry.expires)).collect();
    assert_eq!(kept, [(4, at(104)), (1, at(101))]);
    assert_eq!(table.free.len(), 6);
    // What was not believed is gone for the next process too.
    let (_, again) = PersistenceTable::adopt(table.region, [9; 4], at(20), |_| true);
    assert_eq!(again, PersistenceAdoption { adopted: 2, ..PersistenceAdoption::default() });
}

#[test]
fn a_prolonged_entry_is_prolonged_for_the_next_process_too() {
    let mut table = empty(2);
    table.record(&event(1, 1, 1, 10));
    table.record(&event(1, 1, 9, 10));
    let (table, _) = PersistenceTable::adopt(table.region, [0; 4], at(12), |_| true);
    assert_eq!(kept_at(&table, at(18), &key(1)), Some(1));
    assert_eq!(kept_at(&table, at(19), &key(1)), None);
}

#[test]
fn a_smaller_table_imports_the_clients_that_came_last() {
    let mut table = empty(10);
    for client in 1..=10 {
        table.record(&event(client, u32::from(client), u64::from(client), 100));
    }
    let mut smaller = empty(4);
    let report = smaller.import(&table.region, at(20), |_| true);
    assert_eq!((report.adopted, report.no_room), (4, 6));
    let kept: Vec<u32> = smaller.entries().map(|entry| entry.real.0).collect();
    assert_eq!(kept, [10, 9, 8, 7]);
    // And they are in its region, for the process after this one.
    let (again, report) = PersistenceTable::adopt(smaller.region, [0; 4], at(20), |_| true);
    assert_eq!((report.adopted, again.len()), (4, 4));
}
