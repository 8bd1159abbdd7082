//! From nothing to a director that forwards: each step in the order in which it is safe.
//!
//! The TAP and the worker come first, routes and firewall rules last, so that no packet is led
//! here before somebody takes it.

use super::drains::Draining;
use super::state::State;
use super::workers::FlowTables;
use super::{Daemon, Started, now, workers};
use crate::control::admin::server::{Bound, ListenError};
use crate::control::announcement::Announcements;
use crate::control::build::{BuildError, CookieRoot, PathTarget, World};
use crate::control::config::{
    Announce, Capture, Config, HashKeyError, IoEngine, LoadedKey, config_hash,
};
use crate::control::cores;
use crate::control::destinations::DESTINATION_CAPACITY;
use crate::control::egress_paths::EgressPaths;
use crate::control::finding::Finding;
use crate::control::flow_region::{Before, FlowRegion, FlowRegionError};
use crate::control::health::Board;
use crate::control::host;
use crate::control::making_room::LetGo;
use crate::control::metrics::listener;
use crate::control::netlink::links::Link;
use crate::control::netlink::watch::HostWatch;
use crate::control::netlink::{Netlink, NetlinkError};
use crate::dataplane::conntrack::{AdoptionReport, FlowKey, FlowRecord, FlowTable, Slot};
use crate::dataplane::counters::AllCounters;
use crate::dataplane::hash::HashKey;
use crate::dataplane::ids::VipId;
use crate::dataplane::packet::Address;
use crate::dataplane::persistence::PersistenceTable;
use crate::dataplane::rate_limit::{Rate, RateLimits};
use crate::dataplane::region::Entry;
use crate::dataplane::snapshot::Snapshot;
use crate::dataplane::steering::{Steering, Tuple};
use crate::io::{
    self, EgressError, EgressTarget, EngineError, Errno, IoPreference, MAX_EGRESS, OpenEgress,
    PacketSocketError, Tap, TapConfig, TapError,
};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long one epoch of the cookies in outer ids lasts. Errors about a packet arrive within
/// seconds; a guesser has this long to try 65 536 values, of which 16 a minute are looked at.
pub(super) const COOKIE_EPOCH: Duration = Duration::from_secs(3600);

/// How long the TAP of a killed director may take to go.
const OLD_TAP_GONE: Duration = Duration::from_secs(3);

/// Why a director did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A capability is missing.
    #[error("{}: {}", .0.message, .0.help)]
    Privilege(Finding),
    /// The hash key.
    #[error(transparent)]
    Key(#[from] HashKeyError),
    /// The kernel does not answer.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// There is no such interface.
    #[error("there is no interface {0}; set `interface` to the one that faces the clients")]
    NoInterface(String),
    /// The interface cannot carry announcements.
    #[error("the interface {0} is not Ethernet, so there is no ARP on it: set announce = \"none\"")]
    NotEthernet(String),
    /// In bridge capture the interface is a bridge.
    #[error("{0} is not a bridge, of which the TAP could become a port; `adit check` says more")]
    NotBridge(String),
    /// The TAP would not take what the interface brings.
    #[error("{}: {}", .0.message, .0.help)]
    NarrowTap(Finding),
    /// An outer source is not this host's.
    #[error("{}: {}", .0.message, .0.help)]
    ForeignSource(Finding),
    /// The TAP.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The flow region.
    #[error(transparent)]
    Region(#[from] FlowRegionError),
    /// The configuration does not fit.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The packet loop.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A receive socket.
    #[error(transparent)]
    Sockets(#[from] PacketSocketError),
    /// An eventfd.
    #[error("cannot make an eventfd: {0}")]
    Waker(Errno),
    /// No randomness.
    #[error("the kernel gives no random bytes: {0}")]
    Random(getrandom::Error),
    /// The worker's thread.
    #[error("cannot start a worker's thread: {0}")]
    Thread(std::io::Error),
    /// The admin socket.
    #[error(transparent)]
    Admin(#[from] ListenError),
    /// The listener for metrics.
    #[error(transparent)]
    Metrics(#[from] listener::ListenError),
    /// Routes, firewall, announcements.
    #[error("{0}")]
    Host(String),
}

/// Starts a director.
pub(super) async fn start(config_path: PathBuf, config: Config) -> Result<Started, StartError> {
    if let Some(missing) = host::missing_capabilities(host::capabilities()).into_iter().next() {
        return Err(StartError::Privilege(missing));
    }
    raise_descriptor_limit();
    let key = LoadedKey::load(config.director.hash_key_file.as_deref())?;
    let netlink = Netlink::open()?;
    // Listen before the first look, so that no change falls in between.
    let watch = HostWatch::open()?;
    let client = client_interface(&netlink, &config).await?;
    if let Some(foreign) = netlink.foreign(config.tunnel.sources()).await?.first() {
        return Err(StartError::ForeignSource(host::foreign_source(*foreign)));
    }
    let mut region = FlowRegion::open(&config.director.state_dir, &host::geometry(&config))?;
    // Before the host is changed: a director nobody can ask would have to be stopped again.
    let socket = &config.director.socket;
    let mut admin = vec![Bound::new(socket)?];
    if let Some(group) = &config.director.admin_group {
        admin.push(Bound::for_group(socket, group)?);
    }
    let metrics = match config.director.metrics {
        Some(address) => Some(listener::Bound::new(address).await?),
        None => None,
    };
    let mut tap = open_tap(&config, &client).await?;
    let engine = io::choose(preference(config.director.io), &tap)?;
    tracing::info!(engine = %engine.engine, reason = engine.reason, "io engine chosen");
    tap.attach_queues()?;

    let workers = cores::workers(&config);
    let counters = AllCounters::new(DESTINATION_CAPACITY, workers);
    let steering = workers::steering(workers, region.info.origin.cookie_secret);
    let inherited = inherit(&mut region, &config, key.key, steering, &counters)?;
    let adopted = inherited.adopted;
    let (mut state, flows) = first_state(inherited, &region, config, &client, &netlink).await?;
    // All flows and ids are in: from now on a successor finds this file.
    region.placement.publish().map_err(FlowRegionError::from)?;
    let loops = (&tap, engine.engine);
    let (workers, threads) =
        workers::start(&mut state, flows, steering, key.key, loops, &counters)?;

    // A shell may read the clock: metrics say when this began in terms of the calendar.
    #[allow(clippy::disallowed_methods)]
    let started_at = SystemTime::now();
    let daemon = Rc::new(Daemon {
        config_path,
        key,
        netlink,
        tap,
        engine,
        counters,
        workers,
        flows: region.flows,
        adopted,
        started: now(),
        started_at,
        state: RefCell::new(state),
        changing: tokio::sync::Mutex::new(()),
        routing: tokio::sync::Mutex::new(()),
        published: tokio::sync::Notify::new(),
        stopping: Cell::new(false),
        _state_directory: region.lock,
    });
    // Flows that were adopted for real servers that are not configured any more.
    daemon.mark_draining();
    if let Err(refused) = daemon.enter_host().await {
        daemon.leave_host().await;
        return Err(StartError::Host(refused));
    }
    let hash = config_hash(&daemon.state.borrow().config);
    tracing::info!(%hash, key = daemon.key.fingerprint(), "forwarding");
    Ok(Started { daemon, threads, watch, admin, metrics })
}

/// What an earlier process left, in the terms of this one.
struct Inherited {
    world: World<&'static [Entry]>,
    flows: FlowTables,
    persistence: PersistenceTable<&'static [Entry]>,
    /// Flows taken over.
    adopted: u64,
    /// What had to go for the configuration, if anything.
    let_go: Option<Finding>,
}

/// Takes over ids, flows and persistence from the region.
fn inherit(
    region: &mut FlowRegion,
    config: &Config,
    key: HashKey,
    steering: Steering,
    counters: &AllCounters,
) -> Result<Inherited, StartError> {
    let (reals, vips) = region.directories();
    let mut world = World::new(reals, vips, key);
    let before = region.before.take();
    let before_flows = before.as_ref();
    let there = before_flows.map_or(&region.flows, |before| &before.flows);
    let let_go = LetGo::beside(&world, config, there, now());
    if let Some(finding) = let_go.finding() {
        tracing::warn!(help = finding.help, "{}", finding.message);
    }
    // What names the ids goes before the ids do.
    let_go.end_flows(&region.flows);
    let known = |real| world.reals.get(real).is_some() && !let_go.has_real(real);
    let (mut persistence, _) = PersistenceTable::adopt(region.persistence, seed()?, now(), known);
    if let Some(before) = &before {
        persistence.import(before.persistence, now(), known);
    }
    let_go.free(&mut world);
    world.enter(config, counters)?;
    let adoption = (config, &let_go);
    let (flows, report) =
        adopt_flows(&region.flows, before_flows, &mut world, adoption, steering, counters)?;
    tracing::info!(
        region = region.origin,
        adopted = report.adopted,
        expired = report.expired,
        unknown_target = report.unknown_target,
        "flow table"
    );
    let (adopted, let_go) = (u64::from(report.adopted), let_go.finding());
    Ok(Inherited { world, flows, persistence, adopted, let_go })
}

/// The state a director begins with, after a first look at the host.
async fn first_state(
    inherited: Inherited,
    region: &FlowRegion,
    config: Config,
    client: &Link,
    netlink: &Netlink,
) -> Result<(State, FlowTables), StartError> {
    let Inherited { world, flows, persistence, let_go, .. } = inherited;
    let answers = answers_there(&config);
    let (draining_reals, findings) = Draining::inherit(&config);
    let state = State {
        survey: netlink.survey(&world.wanted_paths(&config)).await?,
        world,
        paths: EgressPaths::new(MAX_EGRESS),
        incomplete: false,
        unopened: BTreeMap::new(),
        unpublished: false,
        snapshot: Arc::new(Snapshot::default()),
        persistence,
        header: region.header,
        cookies: CookieRoot {
            secret: region.info.origin.cookie_secret,
            epoch: region.info.cookie_epoch,
        },
        next_epoch: now() + COOKIE_EPOCH,
        path_mtus: HashMap::new(),
        vips: BTreeSet::new(),
        announcements: Announcements::default(),
        kept: HashSet::new(),
        groups: None,
        draining: HashMap::new(),
        findings: findings.into_iter().chain(let_go).collect(),
        seen: Vec::new(),
        rules: None,
        host_due: true,
        client_mac: client.mac.filter(|_| answers),
        client_index: client.index,
        health: Board::new(seed()?[0]),
        draining_reals,
        in_change: true,
        entering: false,
        config,
    };
    Ok((state, flows))
}

/// Each kernel-routed real server has a socket; the usual soft limit of 1024 is for programs that
/// use select(2).
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let limit = Resource::RLIMIT_NOFILE;
    if let Err(error) = getrlimit(limit).and_then(|(_, hard)| setrlimit(limit, hard, hard)) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Whether neighbours are answered on the client-facing interface. In bridge capture the TAP is on
/// their link, and answers itself.
pub(super) fn answers_there(config: &Config) -> bool {
    let director = &config.director;
    director.announce == Announce::Arp && director.capture != Capture::Bridge
}

async fn client_interface(netlink: &Netlink, config: &Config) -> Result<Link, StartError> {
    let name = &config.director.interface;
    let link =
        netlink.link_by_name(name).await?.ok_or_else(|| StartError::NoInterface(name.clone()))?;
    if config.director.announce == Announce::Arp && link.mac.is_none() {
        return Err(StartError::NotEthernet(name.clone()));
    }
    if config.director.capture == Capture::Bridge && !link.is_bridge {
        return Err(StartError::NotBridge(name.clone()));
    }
    if let Some(narrow) = host::narrow_tap(config, &link) {
        return Err(StartError::NarrowTap(narrow));
    }
    Ok(link)
}

/// Makes the TAP. After `kill -9` the kernel takes a moment to end the old ring, which holds the
/// old TAP; as the state directory is ours, nobody else can be using it for long.
async fn open_tap(config: &Config, client: &Link) -> Result<Tap, TapError> {
    let wanted = TapConfig {
        name: config.director.tap.clone(),
        mtu: config.director.mtu.map_or(client.mtu, u32::from),
        queue_length: config.director.tap_queue_length,
        queues: cores::workers(config),
    };
    let deadline = now() + OLD_TAP_GONE;
    loop {
        match Tap::open(&wanted) {
            Err(TapError::Busy { .. } | TapError::NotATap { .. }) if now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            result => return result,
        }
    }
}

pub(super) fn preference(io: IoEngine) -> IoPreference {
    match io {
        IoEngine::Auto => IoPreference::Auto,
        IoEngine::Multishot => IoPreference::Multishot,
        IoEngine::Poll => IoPreference::Poll,
    }
}

/// Takes over the flows of an earlier process, each worker its own, and counts them where `list`
/// looks. In the report, what was not taken over is counted once.
fn adopt_flows(
    areas: &[&'static [Slot]],
    before: Option<&Before>,
    world: &mut World<&'static [Entry]>,
    (config, let_go): (&Config, &LetGo),
    steering: Steering,
    counters: &AllCounters,
) -> Result<(FlowTables, AdoptionReport), StartError> {
    let addresses: HashMap<VipId, Address> =
        world.vips.iter().map(|(id, vip)| (id, vip.address)).collect();
    let owner = |flow: &FlowRecord| {
        let key = &flow.key;
        // One whose VIP is not known belongs to nobody, which is told of before this is asked.
        addresses.get(&key.vip).map_or(0, |vip| {
            let FlowKey { client_port, vip_port, protocol, .. } = *key;
            steering.owner(&Tuple { client: &key.client, client_port, vip, vip_port, protocol })
        })
    };
    // Their ids may be another's by now.
    let mut resolve = |flow: &FlowRecord| {
        if let_go.has(flow) { None } else { world.adopt_flow(config, flow, counters) }
    };
    let mut whole = AdoptionReport::default();
    let mut tables = Vec::new();
    for (number, slots) in (0..).zip(areas) {
        let (table, report) = match before {
            None => FlowTable::adopt(*slots, seed()?, now(), &mut resolve),
            Some(before) => {
                let mut table = FlowTable::new(*slots, seed()?);
                let old = before.flows.iter().copied().flatten();
                let ours = |flow: &FlowRecord| owner(flow) == number;
                let report = table.reinsert_from(old, now(), &mut resolve, ours);
                (table, report)
            }
        };
        whole.adopted += report.adopted;
        // Entering them again, each worker looks at all of them.
        if before.is_none() || number == 0 {
            whole.expired += report.expired;
            whole.unknown_target += report.unknown_target;
        }
        tables.push(table);
    }
    for slot in areas.iter().copied().flatten() {
        if let Ok(Some(flow)) = slot.read()
            && let Some(counters) = counters.destinations().get(flow.destination.index())
        {
            let active = flow.progress.class.is_active();
            if active {
                counters.active.add(1)
            } else {
                counters.inactive.add(1)
            };
        }
    }
    Ok((tables, whole))
}

pub(super) fn rate_limits(config: &Config) -> RateLimits {
    let core = RateLimits::default();
    // The core's proportions of burst to rate, and of one kind of packet to all.
    let scaled = |rate: Rate, from: Rate, per_second: u32| {
        let part = |n: u32| {
            let scaled = u64::from(n) * u64::from(per_second) / u64::from(from.per_second.max(1));
            u32::try_from(scaled).unwrap_or(u32::MAX).max(1)
        };
        Rate { per_second: part(rate.per_second), burst: part(rate.burst) }
    };
    let limits = config.limits;
    RateLimits {
        total: scaled(core.total, core.total, limits.emitted_total),
        kind: scaled(core.kind, core.total, limits.emitted_total),
        client: scaled(core.client, core.client, limits.emitted_per_client),
        clients: core.clients,
    }
}

/// Random numbers for hash tables that clients must not be able to make collide.
pub(super) fn seed() -> Result<[u64; 4], StartError> {
    let mut seed = [0; 4];
    for word in &mut seed {
        *word = getrandom::u64().map_err(StartError::Random)?;
    }
    Ok(seed)
}

/// Opens a path. Where that fails, its real servers are without a way until the next look.
pub(super) fn open_path(target: &PathTarget) -> Result<OpenEgress, EgressError> {
    let target = match *target {
        PathTarget::Direct { interface } => EgressTarget::Direct { interface },
        PathTarget::Kernel { destination, source } => {
            EgressTarget::Kernel { destination, source: Some(source) }
        }
        PathTarget::Protected { destination, source, protocol, hop_limit } => {
            EgressTarget::Protected { destination, source, protocol, hop_limit }
        }
    };
    OpenEgress::open(&target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::build::{real_identity, vip_identity};
    use crate::control::config::RealTunnel;
    use crate::control::config::parse;
    use crate::dataplane::conntrack::{NewFlow, Observation, Timeouts};
    use crate::dataplane::ids::{DestinationId, RealId};
    use crate::dataplane::packet::{self, protocol};
    use crate::dataplane::region::{Kept, VIP_CAPACITY};
    use std::net::IpAddr;
    use std::path::Path;

    /// VIPs with two flows; the others have one.
    const BUSY: u32 = 100;

    fn config(directory: &Path, max_connections: u32) -> Config {
        let text = format!(
            "[director]\ninterface = \"eth0\"\nstate_dir = \"{}\"\nmax_connections = {max_connections}\n\
             [[service]]\nname = \"new\"\nvip = \"10.9.0.0/24\"\nport = 80\n\
             [[service.real]]\naddress = \"10.7.0.1\"\n\
             [[service]]\nname = \"old\"\nvip = \"10.8.1.0\"\nport = 80\n\
             [[service.real]]\naddress = \"10.6.0.0\"\n",
            directory.display()
        );
        parse(&text, "t").unwrap()
    }

    fn numbered(prefix: u8, number: u32) -> IpAddr {
        let [_, _, high, low] = number.to_be_bytes();
        IpAddr::from([10, prefix, high, low])
    }

    /// A region whose directories are full: VIPs 10.8.x.x and real servers 10.6.x.x, with flows of all
    /// VIPs to the first real server.
    fn fill(config: &Config) {
        let mut region =
            FlowRegion::open(&config.director.state_dir, &host::geometry(config)).unwrap();
        for (number, entry) in (0..).zip(region.reals) {
            real_identity(numbered(6, number), RealTunnel::Ipip).write(entry);
        }
        for (number, entry) in (0..).zip(region.vips) {
            vip_identity(numbered(8, number)).write(entry);
        }
        let mut table = FlowTable::new(region.flows[0], [1; 4]);
        for number in 0..VIP_CAPACITY {
            for client_port in [40_000, 40_001].into_iter().take(if number < BUSY { 2 } else { 1 })
            {
                let key = FlowKey {
                    client: packet::address(numbered(1, number)),
                    client_port,
                    vip: VipId(number),
                    vip_port: 80,
                    protocol: protocol::UDP,
                };
                let (real, destination) = (RealId(0), DestinationId(0));
                let flow = NewFlow { key, real, destination, rederived: false };
                let seen = Observation::Datagram;
                let _ = table.insert(now(), &flow, &Timeouts::default(), &seen).unwrap();
            }
        }
        region.placement.publish().unwrap();
    }

    /// The clients and VIPs of a region's flows.
    fn flows(region: &FlowRegion, vips: &HashMap<VipId, IpAddr>) -> BTreeSet<(IpAddr, IpAddr)> {
        let read = |slot: &Slot| slot.read().ok().flatten();
        let flows = region.flows.iter().copied().flatten().filter_map(read);
        flows.map(|flow| (packet::ip_addr(&flow.key.client), vips[&flow.key.vip])).collect()
    }

    #[test]
    fn what_drains_gives_way_to_what_the_configuration_names() {
        // As it is, and in another size.
        for size in [4096, 8192] {
            let directory = tempfile::tempdir().unwrap();
            fill(&config(directory.path(), 4096));
            let config = config(directory.path(), size);
            let mut region =
                FlowRegion::open(&config.director.state_dir, &host::geometry(&config)).unwrap();
            assert_eq!(region.before.is_some(), size != 4096);
            let counters = AllCounters::new(DESTINATION_CAPACITY, 1);
            let steering = workers::steering(1, region.info.origin.cookie_secret);
            let inherited =
                inherit(&mut region, &config, HashKey::DEFAULT, steering, &counters).unwrap();
            let Inherited { world, adopted, let_go, .. } = inherited;
            // The 256 new VIPs take the place of as many; 10.8.1.0 is the configuration's.
            let said = let_go.unwrap().message;
            let right = "256 VIPs and 1 real servers of earlier configurations were let go at the \
                         start, with 256 connections";
            assert_eq!(said, right);
            assert_eq!(adopted, u64::from(VIP_CAPACITY + BUSY - 256));
            let vips: HashMap<VipId, IpAddr> = world
                .vips
                .iter()
                .map(|(id, identity)| (id, packet::ip_addr(&identity.address)))
                .collect();
            let here: BTreeSet<IpAddr> = vips.values().copied().collect();
            for service in &config.services {
                assert!(service.vip.addresses().all(|vip| here.contains(&vip)), "{}", service.vip);
            }
            assert!((0..BUSY).all(|number| here.contains(&numbered(8, number))));
            // None is taken for that of a VIP which has its id now.
            for (client, vip) in flows(&region, &vips) {
                let (IpAddr::V4(client), IpAddr::V4(vip)) = (client, vip) else { panic!() };
                assert_eq!(client.octets()[2..], vip.octets()[2..]);
                assert_eq!(vip.octets()[1], 8, "a new one has none");
            }
        }
    }

    /// A process that is killed before it has adopted the flows leaves none that names an id which is
    /// another's by then.
    #[test]
    fn flows_go_before_their_ids_do() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), 4096);
        fill(&config);
        let region =
            FlowRegion::open(&config.director.state_dir, &host::geometry(&config)).unwrap();
        let (reals, vips) = region.directories();
        let mut world = World::new(reals, vips, HashKey::DEFAULT);
        let let_go = LetGo::beside(&world, &config, &region.flows, now());
        let known = |world: &World<&'static [Entry]>| {
            let read = |slot: &Slot| slot.read().ok().flatten();
            let flows = region.flows.iter().copied().flatten().filter_map(read);
            flows.map(|flow| world.vips.get(flow.key.vip).is_some()).collect::<Vec<_>>()
        };
        let_go.end_flows(&region.flows);
        let_go.free(&mut world);
        let (there, right) = (known(&world), VIP_CAPACITY + BUSY - 256);
        assert!(there.iter().all(|known| *known), "a flow names an id that is free");
        assert_eq!(there.len(), right as usize);
    }

    #[test]
    fn nothing_goes_where_there_is_room() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), 4096);
        for adopted in [0, 0] {
            let mut region =
                FlowRegion::open(&config.director.state_dir, &host::geometry(&config)).unwrap();
            let counters = AllCounters::new(DESTINATION_CAPACITY, 1);
            let steering = workers::steering(1, region.info.origin.cookie_secret);
            let inherited =
                inherit(&mut region, &config, HashKey::DEFAULT, steering, &counters).unwrap();
            region.placement.publish().unwrap();
            assert_eq!((inherited.adopted, inherited.let_go), (adopted, None));
        }
    }
}
