//! What `top` knows, and how it is looked at. Pure: time comes with the readings.

use super::super::rate::{Rates, per_second};
use crate::control::admin::api::{Drop, ServiceView, Status};
use serde::Serialize;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

/// Events that are remembered: more than a screen shows.
const EVENTS: usize = 100;

/// Events of one reading. A reload may change hundreds of real servers; they are in the table.
const EVENTS_A_READING: usize = 8;

/// What the director said at one moment.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    /// When, since `top` started.
    pub(super) at: Duration,
    pub(super) status: Status,
    pub(super) services: Vec<ServiceView>,
    pub(super) drops: Vec<Drop>,
}

/// The last reading, and what happened per second since the one before.
#[derive(Debug, Serialize)]
pub(super) struct Seen {
    #[serde(skip)]
    pub(super) at: Duration,
    pub(super) status: Status,
    pub(super) services: Vec<ServiceView>,
    /// Reasons that happened, those that do so most first.
    pub(super) drops: Vec<DropRate>,
    /// Absent after the first reading of a director.
    pub(super) rates: Option<AllRates>,
}

/// A drop reason that happened.
#[derive(Debug, Serialize)]
pub(super) struct DropRate {
    #[serde(flatten)]
    pub(super) drop: Drop,
    /// Absent after the first reading of a director.
    pub(super) per_second: Option<f64>,
}

/// What happened per second between two readings.
#[derive(Debug, Serialize)]
pub(super) struct AllRates {
    /// Frames handed to the core.
    pub(super) received_per_second: f64,
    /// Packets sent on.
    pub(super) forwarded_per_second: f64,
    /// Bits of packets from clients.
    pub(super) bits_per_second: f64,
    /// Packets dropped for whatever reason.
    pub(super) dropped_per_second: f64,
    /// By service and real server.
    #[serde(flatten)]
    pub(super) of: Rates,
}

/// Why there is no newer reading.
#[derive(Debug)]
pub(super) struct Lost {
    /// When the first question found no answer.
    pub(super) since: Duration,
    /// When the last one did.
    pub(super) now: Duration,
    pub(super) why: String,
}

/// Something that happened.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) at: Duration,
    pub(super) what: String,
}

/// By what services are sorted, and real servers in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    /// As the director lists them: by name and address.
    Name,
    Bits,
    Packets,
    New,
    Active,
}

impl Sort {
    /// The next one, round and round.
    pub(super) fn next(self) -> Self {
        match self {
            Sort::Name => Sort::Bits,
            Sort::Bits => Sort::Packets,
            Sort::Packets => Sort::New,
            Sort::New => Sort::Active,
            Sort::Active => Sort::Name,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Sort::Name => "name",
            Sort::Bits => "bit/s",
            Sort::Packets => "packet/s",
            Sort::New => "new/s",
            Sort::Active => "active",
        }
    }
}

/// What `top` knows, and how it is looked at.
#[derive(Debug)]
pub(super) struct Model {
    seen: Option<Seen>,
    before: Option<Reading>,
    lost: Option<Lost>,
    events: VecDeque<Event>,
    /// Of the director's socket.
    pub(super) socket: String,
    /// Between two readings.
    pub(super) interval: Duration,
    pub(super) colours: bool,
    pub(super) sort: Sort,
    /// Lines of the table that are above the screen.
    pub(super) scroll: usize,
    pub(super) paused: bool,
    pub(super) help: bool,
}

impl Model {
    pub(super) fn new(socket: &str, interval: Duration, colours: bool) -> Self {
        Model {
            seen: None,
            before: None,
            lost: None,
            events: VecDeque::new(),
            socket: socket.to_owned(),
            interval,
            colours,
            sort: Sort::Name,
            scroll: 0,
            paused: false,
            help: false,
        }
    }

    /// The last reading, kept while there is no newer one.
    pub(super) fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }

    /// Why there is no newer reading; `None` while the director answers.
    pub(super) fn lost(&self) -> Option<&Lost> {
        self.lost.as_ref()
    }

    /// What happened, the latest last.
    pub(super) fn events(&self) -> impl DoubleEndedIterator<Item = &Event> + ExactSizeIterator {
        self.events.iter()
    }

    /// The time as of the last reading, or the last failure to get one.
    pub(super) fn now(&self) -> Duration {
        let seen = self.seen.as_ref().map_or(Duration::ZERO, |seen| seen.at);
        self.lost.as_ref().map_or(seen, |lost| lost.now.max(seen))
    }

    /// Takes in what the director says now.
    pub(super) fn update(&mut self, reading: Reading) {
        let mut news = Vec::new();
        if self.lost.take().is_some() && self.before.is_some() {
            news.push("the director answers again".to_owned());
        }
        // Counters of another process are no beginning for a difference.
        let restarted = (self.before.as_ref()).is_some_and(|before| {
            let process = |s: &Status| (s.pid, s.start_time_seconds);
            process(&before.status) != process(&reading.status)
        });
        if restarted {
            news.push(format!("the director started anew, as process {}", reading.status.pid));
        } else if let Some(before) = &self.before {
            changes(before, &reading, &mut news);
        }
        if news.len() > EVENTS_A_READING {
            let more = news.len() - (EVENTS_A_READING - 1);
            news.truncate(EVENTS_A_READING - 1);
            news.push(format!("… and {more} more changes"));
        }
        for what in news {
            self.happened(reading.at, what);
        }
        let before = self.before.take().filter(|before| !restarted && before.at < reading.at);
        self.seen = Some(Seen::new(before.as_ref(), &reading));
        self.before = Some(reading);
    }

    /// Takes in that the director did not answer at `at`.
    pub(super) fn unanswered(&mut self, at: Duration, why: &str) {
        if self.lost.is_none() && self.seen.is_some() {
            self.happened(at, "the director does not answer".to_owned());
        }
        let lost = self.lost.get_or_insert_with(|| Lost { since: at, now: at, why: String::new() });
        (lost.now, lost.why) = (at, why.to_owned());
    }

    fn happened(&mut self, at: Duration, what: String) {
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Event { at, what });
    }
}

impl Seen {
    fn new(before: Option<&Reading>, now: &Reading) -> Self {
        let rates = before.map(|before| AllRates::between(before, now));
        let drop_rate = |drop: &Drop| {
            let per_second = before.zip(rates.as_ref()).map(|(before, rates)| {
                let then = before.drops.iter().find(|d| d.reason == drop.reason);
                per_second(then.map_or(0, |d| d.count), drop.count, rates.of.seconds)
            });
            DropRate { drop: drop.clone(), per_second }
        };
        let happened = now.drops.iter().filter(|drop| drop.count > 0);
        let mut drops: Vec<DropRate> = happened.map(drop_rate).collect();
        drops.sort_by(|a, b| {
            let rate = |d: &DropRate| d.per_second.unwrap_or(0.0);
            rate(b).total_cmp(&rate(a)).then(b.drop.count.cmp(&a.drop.count))
        });
        Seen {
            at: now.at,
            status: now.status.clone(),
            services: now.services.clone(),
            drops,
            rates,
        }
    }
}

impl AllRates {
    /// Between two readings of one process, `before` the earlier.
    fn between(before: &Reading, now: &Reading) -> Self {
        let of = Rates::between(&before.services, &now.services, now.at - before.at);
        let rate = |count: fn(&Status) -> u64| {
            per_second(count(&before.status), count(&now.status), of.seconds)
        };
        AllRates {
            received_per_second: rate(|s| s.totals.received),
            forwarded_per_second: rate(|s| s.totals.forwarded),
            bits_per_second: rate(|s| s.totals.received_bytes) * 8.0,
            dropped_per_second: rate(|s| s.dropped),
            of,
        }
    }
}

/// What differs between two readings of one process that people want to be told.
fn changes(before: &Reading, now: &Reading, news: &mut Vec<String>) {
    if before.status.config_hash != now.status.config_hash {
        news.push(format!("another configuration is in force, {}", now.status.config_hash));
    }
    let name = |s: &ServiceView| (s.name.clone(), s.vip);
    for service in &now.services {
        let Some(then) = before.services.iter().find(|s| name(s) == name(service)) else {
            news.push(format!("service {} is new", service.name));
            continue;
        };
        for real in &service.reals {
            match then.reals.iter().find(|r| r.address == real.address) {
                None => news.push(format!("{} {} is new", service.name, real.address)),
                Some(then) => {
                    changed(&service.name, real.address, &then.state, &real.state, news);
                    let weight = (then.weight, then.effective_weight);
                    if weight != (real.weight, real.effective_weight) && then.state == real.state {
                        news.push(format!(
                            "{} {}: weight {} of {}, was {} of {}",
                            service.name,
                            real.address,
                            real.effective_weight,
                            real.weight,
                            weight.1,
                            weight.0
                        ));
                    }
                }
            }
        }
        for real in &then.reals {
            if !service.reals.iter().any(|r| r.address == real.address) {
                news.push(format!("{} {} is gone", service.name, real.address));
            }
        }
    }
    for service in &before.services {
        if !now.services.iter().any(|s| name(s) == name(service)) {
            news.push(format!("service {} is gone", service.name));
        }
    }
    for warning in &now.status.warnings {
        if !before.status.warnings.iter().any(|w| w.message == warning.message) {
            news.push(format!("{}: {}", warning.severity, warning.message));
        }
    }
}

fn changed(service: &str, real: IpAddr, before: &str, now: &str, news: &mut Vec<String>) {
    if before != now {
        news.push(format!("{service} {real} is {now}, was {before}"));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::control::admin::api::{RealView, sample};
    use crate::dataplane::counters::{DestinationReading, WorkerReading};

    /// A director that has received `count` packets, half of them dropped.
    pub(crate) fn reading(seconds: u64, pid: u32, count: u64) -> Reading {
        let real = RealView {
            counters: DestinationReading {
                connections: count / 100,
                active: 7,
                inactive: 3,
                packets: count / 2,
                bytes: count * 50,
            },
            ..sample::real("10.20.0.11")
        };
        let status = Status {
            pid,
            start_time_seconds: u64::from(pid),
            totals: WorkerReading {
                received: count,
                forwarded: count / 2,
                received_bytes: count * 50,
                ..WorkerReading::default()
            },
            dropped: count / 2,
            config_hash: "abc".to_owned(),
            ..sample::status()
        };
        let drop = |reason: &str, count| Drop {
            reason: reason.to_owned(),
            meaning: "why".to_owned(),
            count,
        };
        Reading {
            at: Duration::from_secs(seconds),
            status,
            services: vec![sample::service("orders", "198.51.100.10", vec![real])],
            drops: vec![drop("never", 0), drop("no_service", count / 2), drop("once", 1)],
        }
    }

    fn model() -> Model {
        Model::new("/run/adit/adit.sock", Duration::from_secs(1), false)
    }

    fn told(model: &Model) -> Vec<&str> {
        model.events().map(|event| event.what.as_str()).collect()
    }

    #[test]
    fn two_readings_make_rates() {
        let mut model = model();
        model.update(reading(10, 1, 1000));
        assert!(model.seen().unwrap().rates.is_none(), "one reading has no rates");
        assert!(model.seen().unwrap().drops.iter().all(|d| d.per_second.is_none()));
        model.update(reading(12, 1, 3000));
        let seen = model.seen().unwrap();
        let rates = seen.rates.as_ref().unwrap();
        assert_eq!(rates.received_per_second, 1000.0);
        assert_eq!(rates.forwarded_per_second, 500.0);
        assert_eq!(rates.bits_per_second, 400_000.0);
        assert_eq!(rates.dropped_per_second, 500.0);
        assert_eq!(rates.of.services[0].reals[0].rate.connections_per_second, 10.0);
        assert_eq!(rates.of.services[0].rate.packets_per_second, 500.0);
        let drops: Vec<_> =
            seen.drops.iter().map(|d| (d.drop.reason.as_str(), d.per_second)).collect();
        assert_eq!(drops, [("no_service", Some(500.0)), ("once", Some(0.0))]);
        assert!(told(&model).is_empty());
    }

    #[test]
    fn another_process_begins_anew_even_with_more_packets() {
        let mut model = model();
        model.update(reading(1, 1, 1000));
        model.update(reading(2, 1, 2000));
        model.unanswered(Duration::from_secs(3), "nobody listens");
        model.unanswered(Duration::from_secs(4), "still nobody");
        let lost = model.lost().unwrap();
        assert_eq!((lost.since.as_secs(), lost.now.as_secs()), (3, 4));
        assert_eq!(lost.why, "still nobody");
        assert_eq!(model.now().as_secs(), 4);
        assert_eq!(model.seen().unwrap().status.totals.received, 2000, "what was known stays");
        model.update(reading(5, 2, 9000));
        assert!(model.lost().is_none());
        assert!(model.seen().unwrap().rates.is_none(), "its packets are not this second's");
        assert_eq!(
            told(&model),
            [
                "the director does not answer",
                "the director answers again",
                "the director started anew, as process 2"
            ]
        );
        model.update(reading(6, 2, 9100));
        assert_eq!(model.seen().unwrap().rates.as_ref().unwrap().received_per_second, 100.0);
    }

    #[test]
    fn counters_that_went_back_give_no_nonsense() {
        let mut model = model();
        model.update(reading(1, 1, 5000));
        model.update(reading(2, 1, 100));
        let rates = model.seen().unwrap().rates.as_ref().unwrap();
        assert_eq!(rates.received_per_second, 100.0);
        // Two readings of one moment have no rates either.
        model.update(reading(2, 1, 200));
        assert!(model.seen().unwrap().rates.is_none());
    }

    #[test]
    fn changes_are_told() {
        let mut model = model();
        model.update(reading(1, 1, 0));
        let mut now = reading(2, 1, 0);
        now.status.config_hash = "def".to_owned();
        now.services[0].reals[0].state = "drained".to_owned();
        now.services[0].reals.push(sample::real("10.20.0.12"));
        now.services.push(sample::service("more", "198.51.100.11", Vec::new()));
        model.update(now.clone());
        assert_eq!(
            told(&model),
            [
                "another configuration is in force, def",
                "orders 10.20.0.11 is drained, was up",
                "orders 10.20.0.12 is new",
                "service more is new",
            ]
        );
        (now.at, now.services[0].reals[1].effective_weight) = (Duration::from_secs(3), 5);
        now.services[0].reals.remove(0);
        now.services.pop();
        model.update(now);
        assert_eq!(
            told(&model)[4..],
            [
                "orders 10.20.0.12: weight 5 of 100, was 100 of 100",
                "orders 10.20.0.11 is gone",
                "service more is gone",
            ]
        );
    }

    #[test]
    fn events_are_bounded() {
        let mut model = model();
        let mut now = reading(0, 1, 0);
        model.update(now.clone());
        for number in 1..300 {
            now.at = Duration::from_secs(number);
            let real = |part: u8| sample::real(&format!("10.{}.0.{part}", number % 250));
            now.services[0].reals = (1..=20).map(real).collect();
            model.update(now.clone());
        }
        assert_eq!(model.events().len(), EVENTS);
        assert_eq!(told(&model)[EVENTS - 1], "… and 33 more changes");
    }
}
