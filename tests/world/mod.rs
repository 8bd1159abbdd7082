//! A small world for the core, shared by tests, benches and fuzz targets: services, real servers
//! in two data centres, and a shell that keeps what was sent.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each user takes a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that is wrong may panic"
)]

pub mod frames;
pub mod team;

use std::{collections::VecDeque, net::IpAddr, ops::Range, sync::Arc, time::Duration};

use adit_tunnel::OuterTemplate;

use adit::dataplane::{
    admission::Admission,
    conntrack::{FlowTable, Slot, Timeouts},
    counters::Counters,
    director::{Director, Parts, Team},
    fragments::Fragments,
    hash::{HashKey, PersistenceGroup},
    ids::{DestinationId, RealId, VipId},
    packet::ip_addr,
    path_mtu::PathMtus,
    persistence::{PersistenceEvent, PersistenceTable},
    rate_limit::{RateLimiter, RateLimits},
    region::Entry,
    scheduler::{Member, SchedulerFlag, SchedulerKind, Threshold, table::TableCache},
    service::{DfPolicy, PersistencePolicy, Ports, Protocol, Service, ServiceTable},
    snapshot::{Destination, Link, RealServer, Snapshot},
    time::Time,
    verdict::{Account, EgressId, Event, HEADROOM, Outlet, SendResult, Source, Verdict},
};

/// Slot size: the largest frame the tests send, and headroom.
const SLOT: usize = 9216 + HEADROOM;
pub const TAP_MAC: [u8; 6] = [2, 0xad, 1, 0, 0, 1];
pub const CLIENT_MAC: [u8; 6] = [2, 0xad, 1, 0, 0, 2];
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// Outer link header of direct egress in this world.
pub const LINK_HEADER: [u8; 14] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
pub const COOKIE_SECRET: u16 = 0x5a17;

/// One service of a world.
pub struct ServiceSpec {
    pub vip: &'static str,
    pub protocol: Protocol,
    pub ports: Ports,
    pub scheduler: SchedulerKind,
    pub flags: Vec<SchedulerFlag>,
    pub one_packet: bool,
    pub thresholds: Vec<Option<Threshold>>,
    pub members: Vec<Member>,
    pub persistence: Option<PersistencePolicy>,
    pub admission: Option<Arc<Admission>>,
    pub df: DfPolicy,
}

impl ServiceSpec {
    /// A TCP service on port 5432 of two IPv4 real servers in two data centres.
    pub fn orders(scheduler: SchedulerKind) -> Self {
        let member = |address: &str| Member::up(address.parse().unwrap(), 100);
        Self {
            vip: "198.51.100.10",
            protocol: Protocol::Tcp,
            ports: Ports::List([5432].into()),
            scheduler,
            flags: Vec::new(),
            one_packet: false,
            thresholds: Vec::new(),
            members: vec![member("10.20.0.11"), member("10.30.0.21")],
            persistence: None,
            admission: None,
            df: DfPolicy::Copy,
        }
    }

    pub fn persistent(mut self, seconds: u64) -> Self {
        self.persistence = Some(PersistencePolicy {
            group: PersistenceGroup::named("orders"),
            timeout: Duration::from_secs(seconds),
            ipv4_prefix: 32,
            ipv6_prefix: 128,
        });
        self
    }
}

/// Builds a snapshot; real servers are numbered by first appearance, destinations in order.
pub fn snapshot(specs: Vec<ServiceSpec>) -> Snapshot {
    let mut tables = TableCache::new(HashKey::DEFAULT);
    let mut reals: Vec<(IpAddr, RealServer)> = Vec::new();
    let mut vips: Vec<IpAddr> = Vec::new();
    let mut destinations = Vec::new();
    let mut services = Vec::new();
    for spec in specs {
        let address: IpAddr = spec.vip.parse().unwrap();
        let vip = position_or_push(&mut vips, address);
        let vip = VipId(u32::try_from(vip).unwrap());
        let scheduler = spec.scheduler.build(&spec.flags, &spec.members, &mut tables, None);
        let scheduler = scheduler.unwrap();
        let mut ids = Vec::new();
        for member in &spec.members {
            let position = reals.iter().position(|(known, _)| *known == member.address);
            let position = position.unwrap_or_else(|| {
                reals.push((member.address, real_server(member.address)));
                reals.len() - 1
            });
            ids.push(DestinationId(u32::try_from(destinations.len()).unwrap()));
            destinations.push(Some(Destination {
                real: RealId(u32::try_from(position).unwrap()),
                vip,
                timeouts: Timeouts::default(),
                df: spec.df,
                persistence: spec.persistence,
            }));
        }
        services.push(Service {
            name: format!("service-{}", services.len()).into(),
            prefix: address.into(),
            vips: [vip].into(),
            protocol: spec.protocol,
            ports: spec.ports,
            scheduler,
            members: spec.members.into(),
            destinations: ids.into(),
            persistence: spec.persistence,
            admission: spec.admission,
            timeouts: Timeouts::default(),
            df: spec.df,
            one_packet: spec.one_packet,
            thresholds: spec.thresholds.into(),
        });
    }
    let reals: Vec<_> = reals.into_iter().map(|(_, real)| Some(real)).collect();
    Snapshot {
        generation: 1,
        services: ServiceTable::new(services),
        destinations: destinations.into(),
        reals: reals.into(),
        tap_mac: TAP_MAC,
        client_mac: Some(CLIENT_MAC),
        ..Snapshot::default()
    }
}

fn position_or_push(list: &mut Vec<IpAddr>, address: IpAddr) -> usize {
    list.iter().position(|known| *known == address).unwrap_or_else(|| {
        list.push(address);
        list.len() - 1
    })
}

fn real_server(address: IpAddr) -> RealServer {
    let source = if address.is_ipv4() { "10.0.0.5" } else { "2001:db8::5" };
    RealServer {
        outers: OuterTemplate::new(source.parse().unwrap(), address, 64).unwrap().into(),
        link: Link::Direct { egress: EgressId(1), header: LINK_HEADER },
        link_mtu: 1500,
        cookie_secrets: [COOKIE_SECRET, COOKIE_SECRET ^ 0xffff],
    }
}

/// An output of the core, as a shell would send it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub egress: EgressId,
    pub bytes: Vec<u8>,
    pub account: Account,
}

/// A shell that keeps what is sent from auxiliary slots.
pub struct TestShell {
    memory: Vec<Vec<u8>>,
    free: Vec<usize>,
    pub sent: VecDeque<Output>,
    pub events: Vec<Event>,
    /// Keep outputs; off where nothing may be allocated.
    pub keep: bool,
    /// Accounts of sends that were asked for and not yet reported as completed.
    pub pending: Vec<Account>,
}

/// Auxiliary slots of a test shell.
const AUXILIARY: usize = 64;

impl TestShell {
    fn new() -> Self {
        Self {
            memory: vec![vec![0; SLOT]; AUXILIARY],
            free: (0..AUXILIARY).collect(),
            sent: VecDeque::new(),
            events: Vec::new(),
            keep: true,
            pending: Vec::with_capacity(4 * AUXILIARY),
        }
    }
}

impl Outlet for TestShell {
    type Scratch = usize;

    fn acquire(&mut self) -> Option<usize> {
        self.free.pop()
    }

    fn bytes(&mut self, scratch: &usize) -> &mut [u8] {
        &mut self.memory[*scratch]
    }

    fn send(&mut self, scratch: usize, egress: EgressId, range: Range<usize>, account: Account) {
        if self.keep {
            let bytes = self.memory[scratch][range].to_vec();
            self.sent.push_back(Output { egress, bytes, account });
        }
        self.pending.push(account);
        self.free.push(scratch);
    }

    fn release(&mut self, scratch: usize) {
        self.free.push(scratch);
    }

    fn event(&mut self, event: Event) -> bool {
        if self.keep {
            self.events.push(event);
        }
        true
    }
}

/// A director, its shell, a snapshot and a clock.
pub struct World {
    pub director: Director<Vec<Slot>>,
    pub shell: TestShell,
    pub snapshot: Snapshot,
    pub counters: Arc<Counters>,
    pub persistence: PersistenceTable<Vec<Entry>>,
    pub now: Time,
    slot: Vec<u8>,
}

/// What became of one frame.
#[derive(Debug)]
pub struct Outcome {
    pub verdict: Verdict,
    /// Sent bytes, link header included: of the received slot, then of auxiliary slots.
    pub outputs: Vec<Output>,
}

impl World {
    /// A director with room for `connections` flows.
    pub fn new(snapshot: Snapshot, connections: usize) -> Self {
        let counters = Arc::new(Counters::new(snapshot.destinations.len()));
        let now = Time(3_600_000_000_000);
        let places = (0..64).map(|_| Entry::default()).collect();
        let (persistence, _) = PersistenceTable::adopt(places, [5, 6, 7, 8], now, |_| true);
        let director = Director::new(Parts {
            flows: FlowTable::new(slots(connections), [1, 2, 3, 4]),
            fragments: fragments(),
            path_mtus: PathMtus::new(64),
            emit_limits: rate_limiter(),
            persistence: persistence.index(),
            counters: Arc::clone(&counters),
            team: Team::ALONE,
        });
        let (shell, slot) = (TestShell::new(), vec![0; SLOT]);
        Self { director, shell, snapshot, counters, persistence, now, slot }
    }

    pub fn advance(&mut self, duration: Duration) {
        self.now = self.now + duration;
    }

    /// Gives a frame to the core and completes what it sends with `result`. Allocates nothing.
    pub fn pass(&mut self, source: Source, frame: &[u8], result: SendResult) -> Verdict {
        let range = HEADROOM..HEADROOM + frame.len();
        self.slot[range.clone()].copy_from_slice(frame);
        let (director, shell) = (&mut self.director, &mut self.shell);
        let verdict =
            director.handle(self.now, &self.snapshot, source, &mut self.slot, range, shell);
        match &verdict {
            Verdict::Forward { .. } => director.sent(Account::Forward, result),
            Verdict::Reply { .. } => director.sent(Account::Reply, result),
            Verdict::Fragmented
            | Verdict::Pass
            | Verdict::HandedOver
            | Verdict::Hold
            | Verdict::Drop(_) => {}
        }
        for account in shell.pending.drain(..) {
            director.sent(account, result);
        }
        verdict
    }

    /// As [`Self::pass`], with the bytes that were sent.
    pub fn receive_with(&mut self, source: Source, frame: &[u8], result: SendResult) -> Outcome {
        let verdict = self.pass(source, frame, result);
        let mut outputs = Vec::new();
        let sent = match &verdict {
            Verdict::Forward { egress, range } => Some((*egress, range.clone(), Account::Forward)),
            Verdict::Reply { range, .. } => Some((EgressId::TAP, range.clone(), Account::Reply)),
            Verdict::Fragmented
            | Verdict::Pass
            | Verdict::HandedOver
            | Verdict::Hold
            | Verdict::Drop(_) => None,
        };
        if let Some((egress, range, account)) = sent {
            outputs.push(Output { egress, bytes: self.slot[range].to_vec(), account });
        }
        outputs.extend(self.shell.sent.drain(..));
        Outcome { verdict, outputs }
    }

    /// Gives a frame from the TAP to the core; all sends succeed.
    pub fn receive(&mut self, frame: &[u8]) -> Outcome {
        self.receive_with(Source::Tap, frame, SendResult::Sent)
    }

    /// Does what control does with the newest event, that a flow is established: its client is
    /// remembered.
    pub fn remember_client(&mut self) {
        let Some(Event::Established { destination, client }) = self.shell.events.pop() else {
            panic!("{:?}", self.shell.events);
        };
        let target = self.snapshot.destination(destination).unwrap();
        let (policy, real) = (target.persistence.unwrap(), target.real);
        let event = PersistenceEvent::established(&policy, ip_addr(&client), real, self.now);
        self.persistence.record(&event);
    }

    /// Lets timers run at the present time.
    pub fn tick(&mut self) {
        self.director.tick(self.now);
    }
}

fn slots(count: usize) -> Vec<Slot> {
    (0..count).map(|_| Slot::default()).collect()
}

fn rate_limiter() -> RateLimiter {
    RateLimiter::new(&RateLimits::default(), [1, 2, 3, 4])
}
fn fragments() -> Fragments {
    Fragments::new(1500, [9, 8, 7, 6])
}
