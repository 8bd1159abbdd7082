//! All targets: which there are, when each is due, and what the core is told of them.

mod on_demand;

pub use on_demand::Ready;

use super::blocks::{Blocks, Place};
use super::target::{Action, Event, Failure, Outcome, State, Step, Target};
use crate::control::admin::api::{FailuresView, HealthView};
use crate::control::config::{Check, Config, Health, PROBE_PORTS, RealTunnel, Service};
use crate::dataplane::ids::{DestinationId, VipId};
use crate::dataplane::packet::{self, Address};
use crate::dataplane::probe::Probes;
use crate::dataplane::scheduler::Member;
use crate::dataplane::time::Time;
use on_demand::Trial;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

/// What is known of a target that left the configuration is kept this long: a reload that is rolled
/// back brings it back, and its ports rest meanwhile.
const KEPT: Duration = Duration::from_secs(60);
/// A worker takes an update within this time, several of its ticks of 50 ms: checks from ports or
/// addresses that were pinned anew wait for that.
const PIN_TAKEN: Duration = Duration::from_millis(200);

/// What makes a target the same in two configurations.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetKey {
    /// Name of the service.
    pub service: String,
    /// Its VIP.
    pub vip: IpAddr,
    /// The real server.
    pub real: IpAddr,
}

/// A check that is to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Whose.
    pub target: u64,
    /// Address and port of this host.
    pub from: SocketAddr,
    /// VIP and port.
    pub to: SocketAddr,
    /// How long it may take.
    pub timeout: Duration,
}

/// A state that is another than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Whose.
    pub key: TargetKey,
    /// The new one.
    pub to: State,
    /// Why.
    pub reason: String,
}

/// The addresses that checks come from, by target, as a snapshot has them.
pub type Pins = BTreeMap<u64, IpAddr>;

/// The address that the core pins a target's checks by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pin {
    source: IpAddr,
    /// First port of the block.
    first: u16,
    /// From when on the worker knows.
    from: Time,
}

#[derive(Debug)]
struct Entry {
    key: TargetKey,
    target: Target,
    /// How its checks are carried.
    tunnel: RealTunnel,
    /// Its block of source ports; `None` where there was none left.
    block: Option<usize>,
    pin: Option<Pin>,
    /// Which port of the block is next.
    turn: u16,
    /// Since when the configuration does not name it.
    gone: Option<Time>,
}

/// All targets.
#[derive(Debug, Default)]
pub struct Board {
    entries: BTreeMap<u64, Entry>,
    by_key: HashMap<TargetKey, u64>,
    /// Real servers of the configuration that are not checked: they take new flows.
    trusted: BTreeSet<TargetKey>,
    /// When targets are due.
    schedule: BTreeSet<(Time, u64)>,
    /// What an operator tries.
    trials: BTreeMap<u64, Trial>,
    blocks: Blocks,
    settings: Health,
    next_id: u64,
    seed: u64,
    /// Whether the core has not been told of every state.
    untold: bool,
    news: Rc<Notify>,
}

impl Board {
    /// Without a target. `seed` makes this director's jitter another than that of others.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Board { seed, ..Board::default() }
    }

    /// Rings when targets have come or gone, or others are due.
    #[must_use]
    pub fn news(&self) -> Rc<Notify> {
        Rc::clone(&self.news)
    }

    /// Takes over the targets of a configuration. What is known of those that stay is kept.
    pub fn configure(&mut self, config: &Config, now: Time) {
        self.forget_long_gone(now);
        let same_ports = self.settings.ports == config.health.ports;
        self.settings = config.health;
        let wanted =
            || targets(config).filter_map(|(key, tunnel, check)| Some((key, tunnel, check?)));
        // Whoever leaves or moves lets go of its ports before others look for some.
        for entry in self.entries.values_mut() {
            entry.gone.get_or_insert(now);
        }
        for (key, tunnel, check) in wanted() {
            if let Some(id) = self.by_key.get(&key).copied() {
                self.keep(id, tunnel, check, now);
            }
        }
        if !same_ports {
            self.deal_blocks_anew();
        }
        for (key, tunnel, check) in
            wanted().filter(|(key, ..)| !self.by_key.contains_key(key)).collect::<Vec<_>>()
        {
            self.carry_over(key, tunnel, check, now);
        }
        for (key, tunnel, check) in wanted() {
            let id = self
                .by_key
                .get(&key)
                .copied()
                .unwrap_or_else(|| self.add(&key, tunnel, check, now));
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if self.trusted.contains(&key) {
                entry.target.presume_up(now);
            }
            if entry.block.is_none() {
                let place = (key.vip, check.port);
                let block = self.take_block(place, id);
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.block = block;
                }
            }
        }
        self.trusted =
            targets(config).filter(|(_, _, check)| check.is_none()).map(|(key, ..)| key).collect();
        self.schedule = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.gone.is_none())
            .filter_map(|(id, entry)| Some((entry.target.due()?, *id)))
            .collect();
        self.news.notify_one();
    }

    fn forget_long_gone(&mut self, now: Time) {
        let long = |since: Time| now.saturating_since(since) >= KEPT;
        let forgotten: Vec<u64> = self
            .entries
            .iter()
            .filter_map(|(id, entry)| entry.gone.is_some_and(long).then_some(*id))
            .collect();
        forgotten.into_iter().for_each(|id| self.forget(id));
    }

    /// A target that is known is in the configuration, perhaps with other rules.
    fn keep(&mut self, id: u64, tunnel: RealTunnel, check: Check, now: Time) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.gone = None;
        let before = entry.target.rules().port;
        entry.target.set_rules(check);
        if before != check.port {
            entry.pin = None;
            if let Some(block) = entry.block.take() {
                self.blocks.release((entry.key.vip, before), block);
            }
        }
        if entry.tunnel != tunnel {
            entry.tunnel = tunnel;
            entry.pin = None;
            entry.target.go_another_way(now);
        }
    }

    /// What is known of a real server of a service whose name, or VIP, is another now goes over to the
    /// new one: a renamed service goes on being checked as it was; at another VIP the next check
    /// decides alone.
    fn carry_over(&mut self, key: TargetKey, tunnel: RealTunnel, check: Check, now: Time) {
        let candidates = self.entries.iter().filter_map(|(id, entry)| {
            let since = entry.gone.filter(|_| entry.key.real == key.real)?;
            let same_vip = entry.key.vip == key.vip && entry.target.rules().port == check.port;
            (same_vip || entry.key.service == key.service).then_some((same_vip, since, *id))
        });
        let Some((same_vip, _, id)) = candidates.max() else { return };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if !same_vip {
            entry.pin = None;
            if let Some(block) = entry.block.take() {
                self.blocks.release((entry.key.vip, entry.target.rules().port), block);
            }
        }
        self.by_key.remove(&entry.key);
        entry.key = key.clone();
        self.by_key.insert(key, id);
        self.keep(id, tunnel, check, now);
        if let Some(entry) = self.entries.get_mut(&id).filter(|_| !same_vip) {
            entry.target.go_another_way(now);
        }
    }

    /// Other ports: what comes from them is new to the worker.
    fn deal_blocks_anew(&mut self) {
        self.blocks = Blocks::default();
        let most = self.settings.blocks();
        for (id, entry) in &mut self.entries {
            let place = (entry.key.vip, entry.target.rules().port);
            let kept = entry.gone.is_none();
            entry.block = if kept { self.blocks.take(place, *id, most) } else { None };
            entry.pin = None;
        }
        self.deal_trials_anew(most);
    }

    /// A block for a target; where none is left, that of one which is gone.
    fn take_block(&mut self, place: Place, id: u64) -> Option<usize> {
        let most = self.settings.blocks();
        let gone = |(_, entry): &(&u64, &Entry)| {
            let at = (entry.key.vip, entry.target.rules().port);
            at == place && entry.gone.is_some() && entry.block.is_some()
        };
        let free = self.blocks.take(place, id, most);
        free.or_else(|| self.take_tried_block(place, id, most)).or_else(|| {
            let old = self.entries.iter().find(gone).map(|(old, _)| *old)?;
            let entry = self.entries.get_mut(&old)?;
            let block = entry.block.take()?;
            // What is known of it stays; packets of a check under way may now reach another.
            entry.pin = None;
            entry.target.drop_outcome();
            self.blocks.release(place, block);
            self.blocks.take(place, id, most)
        })
    }

    /// A target that is new, which has no ports yet.
    fn add(&mut self, key: &TargetKey, tunnel: RealTunnel, check: Check, now: Time) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        let target = Target::new(check, now, self.seed ^ id);
        self.by_key.insert(key.clone(), id);
        let entry =
            Entry { key: key.clone(), target, tunnel, block: None, pin: None, turn: 0, gone: None };
        self.entries.insert(id, entry);
        id
    }

    fn forget(&mut self, id: u64) {
        let Some(entry) = self.entries.remove(&id) else { return };
        self.by_key.remove(&entry.key);
        if let Some(block) = entry.block {
            self.blocks.release((entry.key.vip, entry.target.rules().port), block);
        }
    }

    /// What checks leave of the members of a service for new flows.
    pub fn judge(&self, service: &Service, members: &mut [Member]) {
        if service.check.is_none() {
            return;
        }
        for member in members {
            match self.find(&service.name, service.vip.address(), member.address).map(Target::state)
            {
                Some(State::Down) => member.down = true,
                // Not known to be dead: a connection that is met in its middle may be its own.
                Some(State::Unchecked) => member.effective_weight = 0,
                Some(State::Up) | None => {}
            }
        }
    }

    /// Whether a target is checked and no check of it has ended yet.
    #[must_use]
    pub fn awaits_first_check(&self, service: &str, vip: IpAddr, real: IpAddr) -> bool {
        let awaits =
            |target: &Target| target.state() == State::Unchecked && target.last().is_none();
        self.find(service, vip, real).is_some_and(awaits)
    }

    fn find(&self, service: &str, vip: IpAddr, real: IpAddr) -> Option<&Target> {
        let key = TargetKey { service: service.to_owned(), vip, real };
        let entry = self.by_key.get(&key).and_then(|id| self.entries.get(id))?;
        entry.gone.is_none().then_some(&entry.target)
    }

    /// What the core is to know of checks, and who comes from where then. `way` is the outer source
    /// towards a real server.
    pub fn probes(
        &self,
        way: impl Fn(IpAddr) -> Option<IpAddr>,
        destination: impl Fn(&TargetKey) -> Option<(VipId, DestinationId)>,
    ) -> (Probes, Pins) {
        let mut pins = Pins::new();
        let mut sources: BTreeSet<Address> = BTreeSet::new();
        let mut places = Vec::new();
        for ((_, port), owners) in self.blocks.iter() {
            let mut vip = None;
            let mut block = Vec::with_capacity(owners.len());
            for owner in owners {
                let pinned = owner.and_then(|id| {
                    let entry = self.entries.get(&id).filter(|entry| entry.gone.is_none());
                    let tried = || self.trials.get(&id).map(|trial| &trial.key);
                    let key = entry.map(|entry| &entry.key).or_else(tried)?;
                    let source = self.source(key, &way)?;
                    let (of, destination) = destination(key)?;
                    vip = Some(of);
                    pins.insert(id, source);
                    sources.insert(packet::address(source));
                    Some(destination)
                });
                block.push(pinned);
            }
            places.extend(vip.map(|vip| ((vip, port), block)));
        }
        let ports = (self.settings.ports.0, PROBE_PORTS);
        (Probes::new(ports, sources.into_iter().collect(), places), pins)
    }

    fn source(&self, key: &TargetKey, way: impl Fn(IpAddr) -> Option<IpAddr>) -> Option<IpAddr> {
        let fixed = match key.vip {
            IpAddr::V4(_) => self.settings.source_v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.settings.source_v6.map(IpAddr::V6),
        };
        let own = || way(key.real).filter(|source| source.is_ipv4() == key.vip.is_ipv4());
        fixed.or_else(own)
    }

    /// The core has been told all this.
    pub fn told(&mut self, pins: &Pins, now: Time) {
        self.untold = false;
        let first_port = self.settings.ports.0;
        for (id, entry) in &mut self.entries {
            pin_anew(&mut entry.pin, pins.get(id).copied(), entry.block, first_port, now);
        }
        self.told_trials(pins, now);
    }

    /// Whether the core has to be told of a state.
    #[must_use]
    pub const fn is_untold(&self) -> bool {
        self.untold
    }

    /// When the next check is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Time> {
        self.schedule.first().map(|(at, _)| *at)
    }

    /// The checks that are due; those that cannot be made have failed at once, and may have changed
    /// a state. `has_way` says whether this host has a way to a real server.
    pub fn due(
        &mut self,
        now: Time,
        has_way: impl Fn(IpAddr) -> bool,
    ) -> (Vec<Start>, Vec<Change>) {
        let (mut starts, mut changes) = (Vec::new(), Vec::new());
        while let Some((at, id)) = self.schedule.first().copied().filter(|(at, _)| *at <= now) {
            self.schedule.remove(&(at, id));
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if let Some(pin) = entry.pin.filter(|pin| pin.from > now) {
                entry.target.put_off(pin.from);
                self.schedule.insert((pin.from, id));
                continue;
            }
            if entry.target.on_event(now, Event::Due) != Action::Start {
                continue;
            }
            let refused = |step, what: &str| Failure { step, what: what.to_owned() };
            let failure = match entry.pin {
                _ if !has_way(entry.key.real) => {
                    refused(Step::NoRoute, "no route to the real server")
                }
                Some(pin) => {
                    let port = pin.first + entry.turn;
                    entry.turn = (entry.turn + 1) % PROBE_PORTS;
                    let rules = entry.target.rules();
                    starts.push(Start {
                        target: id,
                        from: SocketAddr::new(pin.source, port),
                        to: SocketAddr::new(entry.key.vip, rules.port),
                        timeout: rules.timeout,
                    });
                    continue;
                }
                None if entry.block.is_none() => {
                    refused(Step::Local, "no source ports are left: widen `ports` in [health]")
                }
                None => refused(Step::Local, "this host has no address to check it from"),
            };
            changes.extend(self.finished(now, id, Err(failure)));
        }
        (starts, changes)
    }

    /// A check has ended. `None` where it changes nothing; so does that of a target which is gone.
    pub fn finished(&mut self, now: Time, id: u64, outcome: Outcome) -> Option<Change> {
        let entry = self.entries.get_mut(&id)?;
        let action = entry.target.on_event(now, Event::Finished(outcome));
        if entry.gone.is_none()
            && let Some(due) = entry.target.due()
        {
            self.schedule.insert((due, id));
        }
        let Action::Changed(to) = action else { return None };
        if entry.gone.is_some() {
            // Should it come back, the core is told of it then.
            return None;
        }
        self.untold = true;
        Some(Change { key: entry.key.clone(), to, reason: entry.target.reason() })
    }

    /// What is known of a target, for people.
    #[must_use]
    pub fn view(&self, service: &str, vip: IpAddr, real: IpAddr, now: Time) -> Option<HealthView> {
        let target = self.find(service, vip, real)?;
        let last = target.last();
        let latency = last.and_then(|last| last.outcome.as_ref().ok());
        let micros = |latency: &Duration| u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let counts = target.counts();
        let [local, no_route, refused, unreachable, timeout] = counts.failures;
        Some(HealthView {
            check: format!("tcp {}", target.rules().port),
            state: target.state().name().to_owned(),
            since_seconds: now.saturating_since(target.since()).as_secs(),
            last: last.map(|last| match &last.outcome {
                Ok(_) => "ok".to_owned(),
                Err(failure) => failure.step.name().to_owned(),
            }),
            latency_us: latency.map(micros),
            age_seconds: last.map(|last| now.saturating_since(last.at).as_secs()),
            passed: counts.passed,
            failures: FailuresView { local, no_route, refused, unreachable, timeout },
            reason: target.reason(),
        })
    }
}

/// Puts a pin where the core has been told of it. One that is another than before holds when the
/// worker has taken it.
fn pin_anew(
    pin: &mut Option<Pin>,
    source: Option<IpAddr>,
    block: Option<usize>,
    first_port: u16,
    now: Time,
) {
    let block = block.and_then(|block| u16::try_from(block).ok());
    let first = block.map(|block| first_port + block * PROBE_PORTS);
    let wanted = source.zip(first);
    if wanted != pin.map(|pin| (pin.source, pin.first)) {
        *pin = wanted.map(|(source, first)| Pin { source, first, from: now + PIN_TAKEN });
    }
}

/// Every real server of every service, with what its service's check is.
fn targets(config: &Config) -> impl Iterator<Item = (TargetKey, RealTunnel, Option<Check>)> {
    config.services.iter().flat_map(|service| {
        service.reals.iter().map(|real| {
            let key = TargetKey {
                service: service.name.clone(),
                // Of a prefix the first address stands for all.
                vip: service.vip.address(),
                real: real.address,
            };
            (key, real.tunnel, service.check)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse;

    const TEXT: &str = "[director]\ninterface = \"eth0\"\n\
        [[service]]\nname = \"db\"\nvip = \"192.0.2.1\"\nport = 5432\n\
        check = { kind = \"tcp\" }\n\
        [[service.real]]\naddress = \"10.0.0.1\"\n[[service.real]]\naddress = \"10.0.0.2\"\n\
        [[service]]\nname = \"log\"\nvip = \"192.0.2.1\"\nport = 514\nprotocol = \"udp\"\n\
        check = { kind = \"tcp\", port = 5432, fall = 1 }\n\
        [[service.real]]\naddress = \"10.0.0.1\"\n";
    const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 254));

    fn config(text: &str) -> Config {
        parse(text, "t").unwrap()
    }

    /// Destinations by the order of services and real servers.
    fn tell(board: &mut Board, now: Time) -> Probes {
        let destination = |key: &TargetKey| {
            let last = if let IpAddr::V4(real) = key.real { real.octets()[3] } else { 0 };
            let base = if key.service == "db" { 0 } else { 100 };
            Some((VipId(0), DestinationId(base + u32::from(last))))
        };
        let (probes, pins) = board.probes(|_| Some(SOURCE), destination);
        board.told(&pins, now);
        probes
    }

    fn board(now: Time) -> Board {
        let mut board = Board::new(5);
        board.configure(&config(TEXT), now);
        tell(&mut board, now);
        board
    }

    fn seconds(n: u64) -> Time {
        Time(n * 1_000_000_000)
    }

    /// Lets time go by in steps of 10 ms; `outcome` says what becomes of each check, which ends at once.
    fn pass(
        board: &mut Board,
        from: Time,
        to: Time,
        outcome: impl Fn(&Start) -> Outcome,
    ) -> (usize, Vec<Change>) {
        let (mut now, mut started, mut changes) = (from, 0, Vec::new());
        while now < to {
            let (starts, found) = board.due(now, |_| true);
            changes.extend(found);
            started += starts.len();
            for start in starts {
                changes.extend(board.finished(now, start.target, outcome(&start)));
            }
            now = now + Duration::from_millis(10);
        }
        (started, changes)
    }

    fn timeout() -> Outcome {
        Err(Failure { step: Step::Timeout, what: "nobody answered".to_owned() })
    }

    fn members(board: &Board, config: &Config, name: &str) -> Vec<Member> {
        let service = config.services.iter().find(|s| s.name == name).unwrap();
        let up = |real: &crate::control::config::Real| Member::up(real.address, 100);
        let mut members: Vec<Member> = service.reals.iter().map(up).collect();
        board.judge(service, &mut members);
        members
    }

    #[test]
    fn each_target_is_checked_in_its_own_time_from_its_own_ports() {
        let mut board = board(seconds(0));
        assert!(members(&board, &config(TEXT), "db").iter().all(|m| !m.is_eligible() && !m.down));
        let ports = std::cell::RefCell::new(BTreeMap::<u64, BTreeSet<u16>>::new());
        let (started, changes) = pass(&mut board, seconds(0), seconds(20), |start| {
            assert_eq!((start.from.ip(), start.to.port()), (SOURCE, 5432));
            ports.borrow_mut().entry(start.target).or_default().insert(start.from.port());
            Ok(Duration::from_micros(300))
        });
        assert_eq!(changes.len(), 3, "{changes:?}");
        assert!((27..=33).contains(&started), "three of them, every two seconds: {started}");
        let ports: Vec<BTreeSet<u16>> = ports.into_inner().into_values().collect();
        assert!(ports.iter().all(|p| p.len() == usize::from(PROBE_PORTS)), "{ports:?}");
        let all: BTreeSet<u16> = ports.iter().flatten().copied().collect();
        assert_eq!(all.len(), 3 * usize::from(PROBE_PORTS), "none has two owners");
        assert_eq!(
            members(&board, &config(TEXT), "db"),
            members(&Board::new(1), &config(TEXT), "db")
        );
    }

    #[test]
    fn what_the_core_pins_is_where_checks_come_from() {
        let mut board = board(seconds(0));
        let probes = tell(&mut board, seconds(0));
        let mut seen = BTreeSet::new();
        let due = |n: u64| board.due(Time(n * 10_000_000), |_| true).0;
        let starts: Vec<Start> = (0..30).flat_map(due).collect();
        for start in starts {
            let key = crate::dataplane::conntrack::FlowKey {
                client: packet::address(start.from.ip()),
                client_port: start.from.port(),
                vip: VipId(0),
                vip_port: start.to.port(),
                protocol: packet::protocol::TCP,
            };
            let entry = &board.entries[&start.target].key;
            let IpAddr::V4(real) = entry.real else { panic!("{entry:?}") };
            let base = if entry.service == "db" { 0 } else { 100 };
            let expected = DestinationId(base + u32::from(real.octets()[3]));
            assert_eq!(
                probes.pinned(&key, 255, false),
                crate::dataplane::probe::Pinned::To(expected)
            );
            seen.insert(expected);
        }
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn one_that_hangs_delays_nobody() {
        let mut board = board(seconds(0));
        let (mut now, mut others) = (seconds(0), 0);
        let hangs = board.by_key.values().min().copied();
        while now < seconds(60) {
            for start in board.due(now, |_| true).0 {
                // The first one's check never ends.
                if Some(start.target) != hangs {
                    others += 1;
                    board.finished(now, start.target, Ok(Duration::ZERO));
                }
            }
            now = now + Duration::from_millis(10);
        }
        assert!((57..=63).contains(&others), "{others}");
    }

    #[test]
    fn what_is_known_outlives_reloads_and_even_a_refused_one() {
        let mut board = board(seconds(0));
        let down = |start: &Start| {
            // Of the service `db` the one at .2.
            if start.from.port() >= 61_004 && start.from.port() < 61_008 {
                timeout()
            } else {
                Ok(Duration::ZERO)
            }
        };
        pass(&mut board, seconds(0), seconds(10), down);
        let before = members(&board, &config(TEXT), "db");
        assert_eq!(before.iter().map(|m| m.down).collect::<Vec<_>>(), [false, true]);

        let added = TEXT.replace("port = 514", "port = 515").replacen(
            "[[service.real]]",
            "[[service.real]]\naddress = \"10.0.0.0\"\n[[service.real]]",
            1,
        );
        board.configure(&config(&added), seconds(10));
        let after = members(&board, &config(&added), "db");
        let known: Vec<_> = after.iter().map(|m| (m.down, m.is_eligible())).collect();
        assert_eq!(
            known,
            [(false, false), (false, true), (true, false)],
            "the new one is unchecked"
        );

        // Without the one that is down; then that is taken back.
        let removed = TEXT.replace("[[service.real]]\naddress = \"10.0.0.2\"\n", "");
        board.configure(&config(&removed), seconds(11));
        tell(&mut board, seconds(11));
        let (_, changes) = pass(&mut board, seconds(11), seconds(20), |start| {
            assert!(!(61_004..61_008).contains(&start.from.port()), "it is not checked: {start:?}");
            Ok(Duration::ZERO)
        });
        assert_eq!(changes, [], "the others go on as they were");
        let gone = board.view("db", [192, 0, 2, 1].into(), [10, 0, 0, 2].into(), seconds(20));
        assert_eq!(gone, None, "what is not checked any more is not shown");
        board.configure(&config(TEXT), seconds(20));
        assert_eq!(members(&board, &config(TEXT), "db"), before);

        board.configure(&config(&removed), seconds(21));
        board.configure(&config(&removed), seconds(21) + KEPT);
        board.configure(&config(TEXT), seconds(22) + KEPT);
        let anew = members(&board, &config(TEXT), "db");
        assert!(!anew[1].down && !anew[1].is_eligible(), "long gone is forgotten");
    }

    #[test]
    fn a_check_that_ends_after_its_target_is_gone_is_nobodys() {
        let mut board = board(seconds(0));
        let start =
            (0..30).flat_map(|n| board.due(Time(n * 10_000_000), |_| true).0).next().unwrap();
        let empty = config("[director]\ninterface = \"eth0\"\n");
        board.configure(&empty, seconds(1));
        board.configure(&empty, seconds(2) + KEPT);
        assert_eq!(board.finished(seconds(100), start.target, timeout()), None);
        assert_eq!(board.next_due(), None);
        assert!(!board.is_untold());
    }

    #[test]
    fn pins_that_are_new_wait_for_the_worker() {
        let mut board = board(seconds(0));
        pass(&mut board, seconds(0), seconds(10), |_| Ok(Duration::ZERO));
        let other =
            TEXT.replacen("[[service]]", "[health]\nports = \"50000-50100\"\n[[service]]", 1);
        board.configure(&config(&other), seconds(10));
        tell(&mut board, seconds(10));
        let (early, _) = pass(&mut board, seconds(10), seconds(10) + PIN_TAKEN, |_| timeout());
        assert_eq!(early, 0);
        let (_, changes) = pass(&mut board, seconds(10) + PIN_TAKEN, seconds(14), |start| {
            assert!((50_000..50_012).contains(&start.from.port()), "{start:?}");
            Ok(Duration::ZERO)
        });
        assert_eq!(changes, []);
    }

    #[test]
    fn what_cannot_be_tried_is_said_and_only_a_missing_way_takes_a_server_out() {
        let mut board = board(seconds(0));
        pass(&mut board, seconds(0), seconds(5), |_| Ok(Duration::ZERO));
        // The host's address is gone: that is no fault of real servers.
        let (_, pins) = board.probes(|_| None, |_| Some((VipId(0), DestinationId(0))));
        board.told(&pins, seconds(5));
        let (started, changes) = pass(&mut board, seconds(5), seconds(30), |_| timeout());
        assert_eq!((started, changes), (0, Vec::new()));
        let db: [IpAddr; 2] = [[192, 0, 2, 1].into(), [10, 0, 0, 1].into()];
        let view = board.view("db", db[0], db[1], seconds(30)).unwrap();
        assert_eq!((view.state.as_str(), view.last.as_deref()), ("up", Some("local")));
        assert!(view.failures.local > 5 && view.reason.contains("no address"), "{view:?}");
        let mut changes = Vec::new();
        for n in 0..1000 {
            changes.extend(board.due(seconds(30) + Duration::from_millis(n * 10), |_| false).1);
        }
        assert_eq!(changes.len(), 3, "{changes:?}");
        assert!(changes.iter().all(|c| c.reason.contains("no route to the real server")));
    }

    /// A service whose check has this much in its table, with these real servers.
    fn one(head: &str, check: &str, reals: &[&str]) -> Config {
        let reals: String =
            reals.iter().map(|real| format!("[[service.real]]\naddress = {real}\n")).collect();
        config(&format!(
            "[director]\ninterface = \"eth0\"\n{head}[[service]]\nname = \"db\"\n\
             vip = \"192.0.2.1\"\nport = 5432\n{check}{reals}"
        ))
    }

    const CHECK: &str = "check = { kind = \"tcp\" }\n";
    const TWO_BLOCKS: &str = "[health]\nports = \"50000-50007\"\n";

    fn states(board: &Board, config: &Config) -> Vec<State> {
        targets(config)
            .map(|(key, ..)| board.find(&key.service, key.vip, key.real).unwrap().state())
            .collect()
    }

    #[test]
    fn those_that_come_have_the_ports_of_those_that_leave_with_the_same_reload() {
        let first = one(TWO_BLOCKS, CHECK, &["\"10.0.0.1\"", "\"10.0.0.2\""]);
        let second = one(TWO_BLOCKS, CHECK, &["\"10.0.0.3\"", "\"10.0.0.4\""]);
        let mut board = Board::new(5);
        for (config, from) in [(&first, 0), (&second, 5)] {
            board.configure(config, seconds(from));
            tell(&mut board, seconds(from));
            pass(&mut board, seconds(from), seconds(from + 3), |_| Ok(Duration::ZERO));
            assert_eq!(states(&board, config), [State::Up; 2]);
        }
        // One that comes back in the same reload as another comes does not lose its own to that.
        let third = one(TWO_BLOCKS, CHECK, &["\"10.0.0.4\""]);
        let fourth = one(TWO_BLOCKS, CHECK, &["\"10.0.0.0\"", "\"10.0.0.3\""]);
        board.configure(&third, seconds(10));
        board.configure(&fourth, seconds(11));
        assert_eq!(states(&board, &fourth), [State::Unchecked, State::Up]);
        tell(&mut board, seconds(11));
        pass(&mut board, seconds(11), seconds(14), |_| Ok(Duration::ZERO));
        assert_eq!(states(&board, &fourth), [State::Up; 2]);
        // A reload that is rolled back costs nobody what is known of them.
        let refused = one(TWO_BLOCKS, CHECK, &["\"10.0.0.6\"", "\"10.0.0.7\""]);
        board.configure(&refused, seconds(20));
        board.configure(&fourth, seconds(20));
        assert_eq!(states(&board, &fourth), [State::Up; 2]);
        tell(&mut board, seconds(20));
        let (started, changes) = pass(&mut board, seconds(20), seconds(23), |_| timeout());
        assert!(started >= 2 && changes.is_empty(), "they have ports: {started} {changes:?}");
    }

    #[test]
    fn a_service_with_another_name_or_vip_keeps_what_is_known() {
        let reals = ["\"10.0.0.1\"", "\"10.0.0.2\""];
        let known = one("", CHECK, &reals);
        let change = |from: &str, to: &str| {
            let text = TEXT.replace(from, to);
            config(&text)
        };
        let of = |config: &Config| {
            let mut config = config.clone();
            config.services.retain(|service| service.ports.to_string() == "5432");
            config
        };
        let renamed = of(&change("name = \"db\"", "name = \"orders\""));
        let moved = of(&change("192.0.2.1", "192.0.2.9"));
        let both =
            of(&change("name = \"db\"\nvip = \"192.0.2.1\"", "name = \"x\"\nvip = \"192.0.2.9\""));
        let elsewhere = of(&change(
            "port = 5432\ncheck = { kind = \"tcp\" }",
            "port = 5432\ncheck = { kind = \"tcp\", port = 1 }",
        ));
        let elsewhere = {
            let mut config = elsewhere;
            config.services[0].name = "other".to_owned();
            config
        };
        // The first real server is up, the second down.
        let outcome = |start: &Start| {
            if start.from.port() < 61_004 { Ok(Duration::ZERO) } else { timeout() }
        };
        let begun = || {
            let mut board = Board::new(5);
            board.configure(&known, seconds(0));
            tell(&mut board, seconds(0));
            pass(&mut board, seconds(0), seconds(20), outcome);
            assert_eq!(states(&board, &known), [State::Up, State::Down]);
            board
        };
        let anew = [State::Unchecked; 2];
        for (what, other, expected) in [
            ("name", &renamed, [State::Up, State::Down]),
            ("VIP", &moved, [State::Up, State::Down]),
            ("both", &both, anew),
            ("name and port", &elsewhere, anew),
        ] {
            let mut board = begun();
            board.configure(other, seconds(20));
            assert_eq!(states(&board, other), expected, "{what}");
            // A reload that is rolled back.
            board.configure(&known, seconds(20));
            assert_eq!(states(&board, &known), [State::Up, State::Down], "{what}, back");
        }
        // Renamed, it takes as many failures as ever; elsewhere the first decides.
        for (other, failures) in [(&renamed, 3), (&moved, 1)] {
            let mut board = begun();
            board.configure(other, seconds(20));
            tell(&mut board, seconds(20));
            let failed = std::cell::Cell::new(0);
            let mut now = seconds(20);
            while states(&board, other)[0] == State::Up {
                assert!(now < seconds(40), "{failures}");
                let next = now + Duration::from_millis(10);
                pass(&mut board, now, next, |start| {
                    assert_eq!(start.to.ip(), other.services[0].vip.address());
                    if start.from.port() < 61_004 {
                        failed.set(failed.get() + 1);
                    }
                    timeout()
                });
                now = next;
            }
            assert_eq!(failed.get(), failures);
        }
        // Two services that trade names are two others still.
        let two = config(TEXT);
        let traded = config(
            &TEXT
                .replace("\"db\"", "\"t\"")
                .replace("\"log\"", "\"db\"")
                .replace("\"t\"", "\"log\""),
        );
        let mut board = Board::new(5);
        board.configure(&two, seconds(0));
        tell(&mut board, seconds(0));
        pass(&mut board, seconds(0), seconds(20), |_| Ok(Duration::ZERO));
        board.configure(&traded, seconds(20));
        let known = states(&board, &traded);
        assert_eq!(known.len(), 3);
        assert!(known.contains(&State::Up), "{known:?}");
        let ids: BTreeSet<u64> = board.by_key.values().copied().collect();
        assert_eq!(ids.len(), board.by_key.len(), "no two share what is known");
    }

    #[test]
    fn one_that_comes_back_after_a_long_time_is_new() {
        let (with, without) = (one("", CHECK, &["\"10.0.0.1\""]), one("", CHECK, &[]));
        for (away, expected) in
            [(59, State::Down), (60, State::Unchecked), (9999, State::Unchecked)]
        {
            let mut board = Board::new(5);
            board.configure(&with, seconds(0));
            tell(&mut board, seconds(0));
            pass(&mut board, seconds(0), seconds(3), |_| timeout());
            board.configure(&without, seconds(3));
            // Nothing was reloaded in between.
            board.configure(&with, seconds(3 + away));
            assert_eq!(states(&board, &with), [expected], "{away}");
        }
    }

    #[test]
    fn another_tunnel_is_judged_by_its_own_checks() {
        let ipip = one("", CHECK, &["\"10.0.0.1\""]);
        let gue = one("", CHECK, &["\"10.0.0.1\"\ntunnel = \"gue\""]);
        let ok = || Ok(Duration::ZERO);
        // What was found by the old way, what the check under way finds, and what the first by the
        // new way does.
        for (was, late, then) in [
            (ok(), timeout(), ok()),
            (ok(), timeout(), timeout()),
            (timeout(), ok(), timeout()),
            (timeout(), ok(), ok()),
        ] {
            let state = |outcome: &Outcome| if outcome.is_ok() { State::Up } else { State::Down };
            let mut board = Board::new(5);
            board.configure(&ipip, seconds(0));
            tell(&mut board, seconds(0));
            pass(&mut board, seconds(0), seconds(1), |_| was.clone());
            let begun = board.due(seconds(9), |_| true).0[0];
            board.configure(&gue, seconds(9));
            assert_eq!(states(&board, &gue), [state(&was)], "nothing is known of the new way");
            tell(&mut board, seconds(9));
            let none = board.due(seconds(9) + PIN_TAKEN, |_| true).0;
            assert_eq!(none, [], "one at a time");
            assert_eq!(board.finished(seconds(9) + PIN_TAKEN, begun.target, late), None);
            assert_eq!(states(&board, &gue), [state(&was)], "the old way says nothing of it");
            let next = board.due(seconds(10), |_| true).0;
            assert_eq!(next.len(), 1);
            board.finished(seconds(10), next[0].target, then.clone());
            assert_eq!(states(&board, &gue), [state(&then)], "{was:?}");
        }
        // With none under way the next comes as soon as the worker knows of the way.
        let mut board = Board::new(5);
        board.configure(&ipip, seconds(0));
        tell(&mut board, seconds(0));
        pass(&mut board, seconds(0), seconds(1), |_| ok());
        board.configure(&gue, seconds(1));
        tell(&mut board, seconds(1));
        let (early, _) = pass(&mut board, seconds(1), seconds(1) + PIN_TAKEN, |_| timeout());
        assert_eq!(early, 0);
        let soon = seconds(1) + PIN_TAKEN + Duration::from_millis(20);
        let (started, changes) = pass(&mut board, seconds(1) + PIN_TAKEN, soon, |_| timeout());
        assert_eq!((started, changes.len()), (1, 1));
    }

    #[test]
    fn a_check_that_is_added_takes_nobody_out_before_it_has_failed() {
        let unchecked = one("", "", &["\"10.0.0.1\"", "\"10.0.0.2\""]);
        let checked = one("", CHECK, &["\"10.0.0.1\"", "\"10.0.0.2\"", "\"10.0.0.3\""]);
        let mut board = Board::new(5);
        board.configure(&unchecked, seconds(0));
        board.configure(&checked, seconds(1));
        assert_eq!(states(&board, &checked), [State::Up, State::Up, State::Unchecked]);
        tell(&mut board, seconds(1));
        // The first check alone takes out nobody who served before, the third does.
        let early = pass(&mut board, seconds(1), seconds(3), |_| timeout()).1;
        assert_eq!(early.iter().map(|c| c.key.real.to_string()).collect::<Vec<_>>(), ["10.0.0.3"]);
        pass(&mut board, seconds(3), seconds(8), |_| timeout());
        assert_eq!(states(&board, &checked), [State::Down; 3]);
        // Who was waiting for a check, served while there was none, and is to be checked again.
        let mut board = Board::new(5);
        for (at, config) in (0..).zip([&checked, &unchecked, &checked]) {
            board.configure(config, Time(at));
        }
        assert_eq!(states(&board, &checked), [State::Up, State::Up, State::Unchecked]);
    }
}
