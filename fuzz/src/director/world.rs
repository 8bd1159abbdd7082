//! The small world: two VIPs in both families, five services, six real servers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use adit::dataplane::admission::{Admission, AdmissionPolicy, ClientRate};
use adit::dataplane::conntrack::{FlowTable, Slot, Timeouts};
use adit::dataplane::counters::Counters;
use adit::dataplane::director::{Director, Parts, Team};
use adit::dataplane::fragments::Fragments;
use adit::dataplane::hash::{HashKey, PersistenceGroup};
use adit::dataplane::ids::{DestinationId, RealId, VipId};
use adit::dataplane::packet;
use adit::dataplane::path_mtu::PathMtus;
use adit::dataplane::persistence::PersistenceTable;
use adit::dataplane::probe::Probes;
use adit::dataplane::rate_limit::{Rate, RateLimiter, RateLimits};
use adit::dataplane::region::Entry;
use adit::dataplane::scheduler::{
    Member, Scheduler, SchedulerFlag, SchedulerKind, table::TableCache,
};
use adit::dataplane::service::{
    DfPolicy, PersistencePolicy, Ports, Protocol, Service, ServiceTable,
};
use adit::dataplane::snapshot::{Destination, Link, RealServer, Snapshot};
use adit::dataplane::time::Time;
use adit::dataplane::verdict::EgressId;
use adit_tunnel::OuterTemplate;

pub(super) const TAP_MAC: [u8; 6] = [2, 0xad, 1, 0, 0, 1];
pub(super) const CLIENT_MAC: [u8; 6] = [2, 0xad, 1, 0, 0, 2];
/// Link header of direct egress.
pub(super) const fn link_header(ipv6: bool) -> [u8; 14] {
    let [high, low] = if ipv6 { [0x86, 0xdd] } else { [8, 0] };
    [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, high, low]
}
/// Egress path that wants a link header; [`KERNEL`] wants none.
pub(super) const DIRECT: EgressId = EgressId(1);
pub(super) const KERNEL: EgressId = EgressId(2);

const VIP_A: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
const VIP_B: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 11));
const VIP_6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10));
/// In the order of their [`VipId`]s.
pub(super) const VIPS: [IpAddr; 3] = [VIP_A, VIP_B, VIP_6];

const fn v4(site: u8, host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, site, 0, host))
}

const fn v6(host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x10, 0, 0, 0, 0, host))
}

/// Where the director sends outer packets from.
pub(super) const DIRECTOR_4: IpAddr = v4(0, 5);
pub(super) const DIRECTOR_6: IpAddr = v6(5);

/// In the order of their [`RealId`]s.
pub(super) const REALS: [IpAddr; 6] =
    [v4(20, 11), v4(20, 12), v4(30, 21), v6(1), v6(2), v4(40, 31)];

/// One service: its VIP, protocol, ports, and real servers by [`RealId`].
type Plan = (usize, Protocol, fn() -> Ports, &'static [usize]);

const SERVICES: [Plan; 5] = [
    (0, Protocol::Tcp, || Ports::List([5432].into()), &[0, 1, 2]),
    (0, Protocol::Udp, || Ports::Range(50..=60), &[0, 3]),
    (2, Protocol::Tcp, || Ports::List([5432].into()), &[3, 1, 4]),
    (1, Protocol::Tcp, || Ports::Any, &[2, 5]),
    (2, Protocol::Udp, || Ports::Any, &[4, 0]),
];

/// The real server's address of a destination.
pub(super) fn address_of(destination: usize) -> IpAddr {
    let reals = SERVICES.iter().flat_map(|(.., reals)| reals.iter());
    reals.map(|real| REALS[*real]).nth(destination).expect("one of the destinations")
}

/// Secrets of this epoch and the last, of all real servers.
pub(super) const COOKIE_SECRETS: [u16; 2] = [0x5a17, 0xa5e8];

/// Checks of the first service's real servers: blocks of four ports, the third of which is nobody's any
/// more, from whichever client's address.
pub(super) const PROBE_PORTS: (u16, u16) = (40_240, 4);
const PROBE_BLOCKS: [Option<usize>; 4] = [Some(0), Some(1), None, Some(2)];

/// Addresses of clients, from which this host's checks may come too.
fn is_probe_source(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.octets()[..3] == [192, 0, 2] && v4.octets()[3] < 16)
}

/// The real server that a TCP packet to the first service's port is a check of, by its own rule: from
/// such an address and port, and with a hop limit that no packet of others has, or a reset.
pub(super) fn checked(client: IpAddr, port: u16, hop_limit: u8, is_reset: bool) -> Option<RealId> {
    let (first, each) = PROBE_PORTS;
    let block = usize::from(port.checked_sub(first)? / each);
    let real = PROBE_BLOCKS.get(block).copied().flatten()?;
    let proven = hop_limit == 255 || is_reset;
    (proven && is_probe_source(client)).then(|| RealId(u32::try_from(real).expect("a few")))
}

/// Members of all services; each is a [`DestinationId`].
pub(super) const DESTINATIONS: usize = 12;

/// What the first eight bytes of a sequence choose.
pub(super) struct Settings {
    scheduler: SchedulerKind,
    one_packet: bool,
    /// `sh` and `mh` ask others, and look at ports.
    fallback: bool,
    persistence: bool,
    df: DfPolicy,
    pub(super) decrement_hop_limit: bool,
    reset_unknown: bool,
    client_mac: bool,
    /// The last real server has no route.
    unroutable: bool,
    connections: usize,
    pub(super) link_mtu: u16,
    pub(super) slots: usize,
    pub(super) event_room: usize,
    limits: RateLimits,
    /// What the first service takes of new flows.
    admission: AdmissionPolicy,
    /// Whether the first service's real servers are checked.
    pub(super) checks: bool,
}

impl Settings {
    pub(super) fn read(&[a, b, c, d, e, f, g, h]: &[u8; 8]) -> Self {
        let few = Rate { per_second: 1, burst: u32::from(h >> 4 & 3) + 1 };
        let rate = |burst: u8| Rate { per_second: 10, burst: u32::from(burst) + 1 };
        Self {
            scheduler: SchedulerKind::ALL[usize::from(a) % SchedulerKind::ALL.len()],
            // UDP services alone have it; persistence and it exclude each other.
            one_packet: b & 64 != 0 && b & 1 == 0,
            fallback: b & 128 != 0,
            persistence: b & 1 != 0,
            df: if b & 2 == 0 { DfPolicy::Copy } else { DfPolicy::Clear },
            decrement_hop_limit: b & 4 != 0,
            reset_unknown: b & 8 == 0,
            client_mac: b & 16 == 0,
            unroutable: b & 32 != 0,
            connections: 1 + usize::from(c % 64),
            link_mtu: [1500, 1280, 1400, 2000, 600][usize::from(d % 5)],
            slots: usize::from(e % 17),
            event_room: usize::from(f),
            limits: RateLimits {
                total: rate(g | 1),
                kind: rate(g),
                client: rate(g / 2),
                clients: 8,
            },
            admission: AdmissionPolicy {
                total: (h & 1 != 0).then_some(few),
                client: (h & 2 != 0).then_some(ClientRate {
                    rate: few,
                    ipv4_prefix: 30,
                    ipv6_prefix: 64,
                }),
                half_open: (h & 4 != 0).then(|| u32::from(h >> 6) + 1),
            },
            checks: h & 8 != 0,
        }
    }
}

/// One scheduler per service, all members up.
fn schedulers(kind: SchedulerKind, flags: &[SchedulerFlag]) -> Vec<Arc<dyn Scheduler>> {
    let mut tables = TableCache::new(HashKey::DEFAULT);
    let build = |(.., reals): &Plan| {
        let members: Vec<_> = reals.iter().map(|real| Member::up(REALS[*real], 100)).collect();
        kind.build(flags, &members, &mut tables, None).expect("a few members")
    };
    SERVICES.iter().map(build).collect()
}

/// Maglev tables take a millisecond each and never change; a sequence takes a fraction of that.
static MAGLEV: LazyLock<Vec<Arc<dyn Scheduler>>> =
    LazyLock::new(|| schedulers(SchedulerKind::Maglev, &[]));
static MH: LazyLock<[Vec<Arc<dyn Scheduler>>; 2]> = LazyLock::new(|| {
    [&[], &SchedulerFlag::ALL[..]].map(|flags| schedulers(SchedulerKind::Mh, flags))
});

/// The core and all that control would hold.
pub(super) struct World {
    pub(super) director: Director<Arc<[Slot]>>,
    pub(super) counters: Arc<Counters>,
    pub(super) persistence: PersistenceTable<Vec<Entry>>,
    pub(super) snapshot: Snapshot,
    /// The flow table's slots, read along as control does.
    pub(super) slots: Arc<[Slot]>,
    schedulers: Vec<Arc<dyn Scheduler>>,
    admission: Option<Arc<Admission>>,
    /// Live state of every member, by destination; `None` when it was cut.
    pub(super) members: Vec<Option<Member>>,
    settings: Settings,
}

impl World {
    pub(super) fn new(settings: Settings, now: Time) -> Self {
        let members: Vec<_> = SERVICES
            .iter()
            .flat_map(|(.., reals)| reals.iter())
            .map(|real| Some(Member::up(REALS[*real], 100)))
            .collect();
        assert_eq!(members.len(), DESTINATIONS);
        let schedulers = match settings.scheduler {
            SchedulerKind::Maglev => MAGLEV.clone(),
            SchedulerKind::Mh => MH[usize::from(settings.fallback)].clone(),
            kind if settings.fallback => schedulers(kind, &SchedulerFlag::ALL),
            kind => schedulers(kind, &[]),
        };
        let counters = Arc::new(Counters::new(DESTINATIONS));
        let places = (0..8).map(|_| Entry::default()).collect();
        let (persistence, _) = PersistenceTable::adopt(places, [5, 6, 7, 8], now, |_| true);
        let slots: Arc<[Slot]> = (0..settings.connections).map(|_| Slot::default()).collect();
        let director = Director::new(Parts {
            flows: FlowTable::new(Arc::clone(&slots), [1, 2, 3, 4]),
            fragments: Fragments::new(2048, [9, 8, 7, 6]),
            path_mtus: PathMtus::new(REALS.len()),
            emit_limits: RateLimiter::new(&settings.limits, [1, 2, 3, 4]),
            persistence: persistence.index(),
            counters: Arc::clone(&counters),
            team: Team::ALONE,
        });
        let limits = Some(settings.admission).filter(|it| *it != AdmissionPolicy::default());
        let admission = limits.map(|limits| Arc::new(Admission::new(limits, [4, 3, 2, 1])));
        let mut world = Self {
            director,
            counters,
            persistence,
            snapshot: Snapshot::default(),
            slots,
            schedulers,
            admission,
            members,
            settings,
        };
        world.publish();
        world
    }

    /// Builds the snapshot of the members' present state, as control does after every change.
    pub(super) fn publish(&mut self) {
        let mut services = Vec::new();
        let mut destinations = Vec::new();
        let mut first = 0;
        for (index, (vip, protocol, ports, reals)) in SERVICES.iter().enumerate() {
            let address = VIPS[*vip];
            let vip = VipId(u32::try_from(*vip).expect("three VIPs"));
            let ids = first..first + reals.len();
            first = ids.end;
            let persistence = self.settings.persistence.then(|| PersistencePolicy {
                group: PersistenceGroup::named("all"),
                timeout: Duration::from_secs(600),
                ipv4_prefix: 30,
                ipv6_prefix: 126,
            });
            // A member that was cut stays in its place, as one that nobody may have.
            let members: Vec<_> = reals
                .iter()
                .zip(ids.clone())
                .map(|(real, id)| {
                    let gone = Member { down: true, ..Member::up(REALS[*real], 100) };
                    self.members[id].unwrap_or(gone)
                })
                .collect();
            for (real, id) in reals.iter().zip(ids.clone()) {
                destinations.push(self.members[id].map(|_| Destination {
                    real: RealId(u32::try_from(*real).expect("six real servers")),
                    vip,
                    timeouts: Timeouts::default(),
                    df: self.settings.df,
                    persistence,
                }));
            }
            services.push(Service {
                name: format!("service-{index}").into(),
                prefix: address.into(),
                vips: [vip].into(),
                protocol: *protocol,
                ports: ports(),
                scheduler: Arc::clone(&self.schedulers[index]),
                members: members.into(),
                destinations: ids
                    .map(|id| DestinationId(u32::try_from(id).expect("twelve destinations")))
                    .collect(),
                persistence,
                timeouts: Timeouts::default(),
                df: self.settings.df,
                thresholds: Box::default(),
                // What is used of limits outlives changes.
                admission: self.admission.clone().filter(|_| index == 0),
                one_packet: self.settings.one_packet && *protocol == Protocol::Udp,
            });
        }
        self.snapshot = Snapshot {
            generation: self.snapshot.generation + 1,
            services: ServiceTable::new(services),
            destinations: destinations.into(),
            reals: (0..REALS.len()).map(|id| Some(self.real(id))).collect::<Vec<_>>().into(),
            tap_mac: TAP_MAC,
            client_mac: self.settings.client_mac.then_some(CLIENT_MAC),
            decrement_hop_limit: self.settings.decrement_hop_limit,
            reset_unknown: self.settings.reset_unknown,
            probes: self.probes(),
            ..Snapshot::default()
        };
    }

    fn probes(&self) -> Probes {
        if !self.settings.checks {
            return Probes::default();
        }
        let sources = (0..16).map(|host| packet::address(Ipv4Addr::new(192, 0, 2, host).into()));
        let id = |id: usize| DestinationId(u32::try_from(id).expect("twelve destinations"));
        let blocks = PROBE_BLOCKS.iter().map(|block| {
            // A real server that was cut is checked no more.
            block.filter(|block| self.members[*block].is_some()).map(id)
        });
        Probes::new(PROBE_PORTS, sources.collect(), [((VipId(0), 5432), blocks.collect())])
    }

    /// Whether real servers are checked.
    pub(super) fn checks(&self) -> bool {
        self.settings.checks
    }

    pub(super) fn link_mtu(&self) -> usize {
        self.settings.link_mtu.into()
    }

    /// Whether services that can schedule each datagram anew do.
    pub(super) fn one_packet(&self) -> bool {
        self.settings.one_packet
    }

    fn real(&self, id: usize) -> RealServer {
        let source = if REALS[id].is_ipv4() { DIRECTOR_4 } else { DIRECTOR_6 };
        let link = match id {
            5 if self.settings.unroutable => Link::None,
            _ if id.is_multiple_of(2) => {
                Link::Direct { egress: DIRECT, header: link_header(REALS[id].is_ipv6()) }
            }
            _ => Link::Kernel { egress: KERNEL },
        };
        RealServer {
            outers: OuterTemplate::new(source, REALS[id], 64).expect("one family").into(),
            link,
            link_mtu: self.settings.link_mtu,
            cookie_secrets: COOKIE_SECRETS,
        }
    }
}
