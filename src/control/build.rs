//! From a configuration and a look at the host to the one snapshot the core works with.

use super::config::{self, Config, DontFragment, RealTunnel, VipPrefix};
use super::destinations::{DestinationKey, Destinations, DestinationsFull};
use super::drains::Drains;
use super::health::Board;
use super::netlink::egress::{DirectPath, Egress, KernelReason, RealPath, Survey, Wanted};
use super::tables::{TableWork, members, thresholds};
use crate::dataplane::admission::{Admission, AdmissionPolicy, ClientRate};
use crate::dataplane::conntrack::{FlowRecord, Ticks, Timeouts};
use crate::dataplane::counters::{AllCounters, DestinationCounters};
use crate::dataplane::hash::{HashKey, PersistenceGroup};
use crate::dataplane::ids::{DestinationId, RealId, VipId};
use crate::dataplane::packet;
use crate::dataplane::probe::Probes;
use crate::dataplane::rate_limit::Rate;
use crate::dataplane::region::{
    Directory, DirectoryFull, Entry, RealIdentity, TunnelIdentity, VipIdentity,
};
use crate::dataplane::scheduler::table::{TableCache, TableError};
use crate::dataplane::service::{
    DfPolicy, PersistencePolicy, Ports, Protocol, Service, ServiceTable,
};
use crate::dataplane::snapshot::{Destination, Link, Outers, RealServer, RealServers, Snapshot};
use crate::dataplane::verdict::EgressId;
use adit_tunnel::OuterTemplate;
use siphasher::sip::SipHasher24;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::Arc;

/// Why there is no snapshot for a configuration. All of these are limits; a configuration that
/// keeps them cannot fail.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Too many real servers or VIPs, draining ones included.
    #[error("no room for more real servers or VIPs while old ones still have flows: {0}")]
    Directory(#[from] DirectoryFull),
    /// Too many pairs of service and real server.
    #[error(transparent)]
    Destinations(#[from] DestinationsFull),
    /// No table can hold the members.
    #[error("service {service}: {source}")]
    Table {
        /// Whose table.
        service: String,
        /// Why.
        source: TableError,
    },
}

/// Ids and tables that stay from one snapshot to the next.
pub struct World<S> {
    /// Ids of real servers; in the region.
    pub reals: Directory<RealId, S>,
    /// Ids of VIPs; in the region.
    pub vips: Directory<VipId, S>,
    /// Ids of destinations; in this process.
    pub destinations: Destinations,
    tables: TableCache,
    generation: u64,
}

/// Where a real server's packets leave, as control plans it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathTarget {
    /// Frames out of an interface.
    Direct {
        /// Its number.
        interface: u32,
    },
    /// Packets through the kernel.
    Kernel {
        /// The real server.
        destination: IpAddr,
        /// Outer source.
        source: IpAddr,
    },
    /// Packets that IPsec policies shall see, so that the kernel writes their outer headers.
    Protected {
        /// The real server.
        destination: IpAddr,
        /// Outer source.
        source: IpAddr,
        /// What the outer header announces: 4 or 41.
        protocol: u8,
        /// TTL or hop limit of the outer header.
        hop_limit: u8,
    },
}

/// What a snapshot is made of besides the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The way to each real server, those that drain included.
    pub survey: &'a Survey,
    /// MAC that answers for VIPs on the TAP.
    pub tap_mac: [u8; 6],
    /// MAC of the client-facing interface, where Adit answers for VIPs there.
    pub client_mac: Option<[u8; 6]>,
    /// Root and epoch of the cookies in outer ids.
    pub cookies: CookieRoot,
    /// Counters by destination, for where new ones begin.
    pub counters: &'a [DestinationCounters],
    /// What checks know of real servers.
    pub health: &'a Board,
    /// Workers that share the flow table: those that run, whatever a look at the host would say now.
    pub workers: u16,
    /// Real servers that an operator keeps from new flows.
    pub drains: &'a Drains,
}

/// Where the cookies in outer ids come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CookieRoot {
    /// Random, kept in the region, never shown.
    pub secret: [u8; 16],
    /// Counts up now and then; cookies of the previous epoch are still taken.
    pub epoch: u64,
}

/// Shows the epoch, never the secret.
impl std::fmt::Debug for CookieRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CookieRoot").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl CookieRoot {
    /// A secret for tables whose places clients must not be able to choose, of no use to cookies.
    fn seed(&self) -> [u64; 4] {
        [0, 1, 2, 3].map(|number: u64| {
            let mut hasher = SipHasher24::new_with_key(&self.secret);
            hasher.write(b"client limits");
            hasher.write_u64(number.to_le());
            hasher.finish()
        })
    }

    /// Secrets of a real server in the present and the previous epoch.
    fn secrets(&self, real: RealId) -> [u16; 2] {
        [self.epoch, self.epoch.wrapping_sub(1)].map(|epoch| {
            let mut hasher = SipHasher24::new_with_key(&self.secret);
            hasher.write_u32(real.0.to_le());
            hasher.write_u64(epoch.to_le());
            let [low, high, ..] = hasher.finish().to_le_bytes();
            u16::from_le_bytes([low, high])
        })
    }
}

impl<S: AsRef<[Entry]>> World<S> {
    /// A world with these directories.
    pub fn new(reals: Directory<RealId, S>, vips: Directory<VipId, S>, key: HashKey) -> Self {
        World {
            reals,
            vips,
            destinations: Destinations::default(),
            tables: TableCache::new(key),
            generation: 0,
        }
    }

    /// The ways that are needed: to configured real servers and to those that drain.
    pub fn wanted_paths(&self, config: &Config) -> Wanted {
        let mut reals: BTreeSet<_> = config.real_tunnels().into_iter().collect();
        reals.extend(self.destinations.iter().filter_map(|(_, k)| self.way_of(k.key.real)));
        let mut vips: BTreeSet<VipPrefix> = config.vips().into_iter().collect();
        vips.extend(self.destinations.iter().map(|(_, k)| k.key.vip));
        Wanted {
            reals: reals.into_iter().collect(),
            sources: config.tunnel.sources().collect(),
            vips: vips.iter().flat_map(VipPrefix::addresses).collect(),
        }
    }

    /// The address of a real server, and how packets to it are carried.
    pub fn way_of(&self, real: RealId) -> Option<(IpAddr, RealTunnel)> {
        let identity = self.reals.get(real)?;
        Some((packet::ip_addr(&identity.address), tunnel_of(identity.tunnel)?))
    }

    /// The address of a real server.
    pub fn address_of(&self, real: RealId) -> Option<IpAddr> {
        self.reals.get(real).map(|identity| packet::ip_addr(&identity.address))
    }

    /// The address of a VIP.
    pub fn vip_address(&self, vip: VipId) -> Option<IpAddr> {
        self.vips.get(vip).map(|identity| packet::ip_addr(&identity.address))
    }

    /// Gives every service, VIP, real server and destination of `config` its id. What is gone from
    /// the configuration drains.
    ///
    /// # Errors
    /// When there are no ids left; then the configuration in force must be entered again.
    pub fn enter(&mut self, config: &Config, counters: &AllCounters) -> Result<(), BuildError> {
        self.destinations.begin();
        for service in &config.services {
            let vips = self.intern_vips(service.vip)?;
            let vip = *vips.first().expect("a prefix has an address");
            for real in &service.reals {
                let real = self.intern_real(real.address, real.tunnel)?;
                let key = DestinationKey { service: service.name.clone(), vip: service.vip, real };
                let destination = Destination {
                    real,
                    vip,
                    timeouts: timeouts(&service.timeouts),
                    df: df(service.df),
                    persistence: persistence(service),
                };
                self.destinations.configure(key, destination, counters)?;
            }
        }
        Ok(())
    }

    /// The destination, in this process, of a flow that an earlier one left. One whose service or
    /// real server is not configured any more drains. `None` where its ids mean nothing.
    pub fn adopt_flow(
        &mut self,
        config: &Config,
        flow: &FlowRecord,
        counters: &AllCounters,
    ) -> Option<DestinationId> {
        let vip = self.vip_address(flow.key.vip)?;
        self.address_of(flow.real)?;
        let udp = flow.key.protocol == packet::protocol::UDP;
        let protocol = if udp { config::Protocol::Udp } else { config::Protocol::Tcp };
        let service = config.service_for(vip, flow.key.vip_port, protocol);
        let key = DestinationKey {
            service: service.map_or_else(String::new, |s| s.name.clone()),
            vip: service.map_or_else(|| vip.into(), |s| s.vip),
            real: flow.real,
        };
        let destination = Destination {
            real: flow.real,
            vip: flow.key.vip,
            timeouts: service.map_or_else(Timeouts::default, |s| timeouts(&s.timeouts)),
            df: service.map_or_else(DfPolicy::default, |s| df(s.df)),
            persistence: None,
        };
        self.destinations.adopt(key, destination, counters).ok()
    }

    /// The id of a real server.
    ///
    /// # Errors
    /// When there are no ids left.
    pub fn intern_real(
        &mut self,
        address: IpAddr,
        tunnel: RealTunnel,
    ) -> Result<RealId, DirectoryFull> {
        self.reals.intern(real_identity(address, tunnel))
    }

    /// The ids of all addresses of a prefix, in their order.
    fn intern_vips(&mut self, prefix: VipPrefix) -> Result<Vec<VipId>, DirectoryFull> {
        prefix.addresses().map(|ip| self.vips.intern(vip_identity(ip))).collect()
    }

    /// Lends the placement tables, to have those of `config` built beside the runtime. Until they
    /// are returned no snapshot should be made.
    pub fn lend_tables(&mut self, config: &Config) -> TableWork {
        let empty = TableCache::new(*self.tables.key());
        let tables = std::mem::replace(&mut self.tables, empty);
        TableWork::new(tables, config)
    }

    /// Takes the tables back.
    pub fn return_tables(&mut self, tables: TableCache) {
        self.tables = tables;
    }

    /// Makes the snapshot of a configuration that was [`enter`](Self::enter)ed. `egress` names the
    /// number of a path, `None` where it could not be opened.
    ///
    /// # Errors
    /// When no table can hold the members of a service.
    pub fn snapshot(
        &mut self,
        config: &Config,
        key: HashKey,
        around: &Surroundings<'_>,
        egress: impl Fn(&PathTarget) -> Option<EgressId>,
        previous: Option<&Snapshot>,
    ) -> Result<Snapshot, BuildError> {
        let services = self.services(config, around, previous)?;
        let mut services = ServiceTable::new(services);
        let known: BTreeSet<VipPrefix> =
            self.destinations.iter().map(|(_, known)| known.key.vip).collect();
        for prefix in known {
            let vips = self.intern_vips(prefix)?;
            services.keep_vips(prefix.addresses().map(packet::address).zip(vips));
        }
        self.generation += 1;
        Ok(Snapshot {
            generation: self.generation,
            services,
            destinations: self.destinations.table(),
            reals: self.real_servers(config, around, egress),
            hash_key: key,
            tap_mac: around.tap_mac,
            client_mac: around.client_mac,
            // Routing into the TAP has lowered it; what somebody else brings there may not have
            // been routed at all, and must not circle for ever. Where it has been, it is lowered
            // twice.
            decrement_hop_limit: config.director.capture != config::Capture::Route,
            bridged: config.director.capture == config::Capture::Bridge,
            reset_unknown: true,
            // Whoever knows what the worker was told adds them: `health::pin`.
            probes: Probes::default(),
        })
    }

    fn services(
        &mut self,
        config: &Config,
        around: &Surroundings<'_>,
        previous: Option<&Snapshot>,
    ) -> Result<Vec<Service>, BuildError> {
        let mut services = Vec::with_capacity(config.services.len());
        let mut order: Vec<&config::Service> = config.services.iter().collect();
        // The table gives a port to the first that claims it: a single port before a list.
        order.sort_by_key(|s| s.ports.precedence());
        for service in order {
            let vips = self.intern_vips(service.vip)?;
            let mut members = members(service);
            let mut destinations = Vec::with_capacity(members.len());
            for (member, real) in members.iter().zip(&service.reals) {
                debug_assert_eq!(member.address, real.address, "members are in their order");
                let real = self.intern_real(member.address, real.tunnel)?;
                let key = DestinationKey { service: service.name.clone(), vip: service.vip, real };
                destinations.push(self.destinations.id(&key).ok_or(DestinationsFull)?);
            }
            let before = previous.and_then(|snapshot| service_of(snapshot, &service.name));
            let scheduler = service
                .scheduler
                .build(
                    &service.scheduler_flags,
                    &members,
                    &mut self.tables,
                    before.map(|s| &*s.scheduler),
                )
                .map_err(|source| BuildError::Table { service: service.name.clone(), source })?;
            around.health.judge(service, &mut members);
            around.drains.judge(&service.name, &mut members);
            services.push(Service {
                name: service.name.as_str().into(),
                prefix: service.vip,
                vips: vips.into(),
                protocol: protocol(service.protocol),
                ports: ports(&service.ports),
                scheduler,
                members: members.into(),
                destinations: destinations.into(),
                admission: admission(service, around.workers, around.cookies.seed(), before),
                persistence: persistence(service),
                timeouts: timeouts(&service.timeouts),
                df: df(service.df),
                one_packet: service.one_packet,
                thresholds: thresholds(service, before),
            });
        }
        Ok(services)
    }

    fn real_servers(
        &self,
        config: &Config,
        around: &Surroundings<'_>,
        egress: impl Fn(&PathTarget) -> Option<EgressId>,
    ) -> RealServers {
        let paths: BTreeMap<(IpAddr, RealTunnel), &RealPath> =
            around.survey.paths.iter().map(|path| ((path.address, path.tunnel), path)).collect();
        let mut by_id: Vec<Option<RealServer>> = Vec::new();
        for (_, known) in self.destinations.iter() {
            let id = known.key.real;
            let Some(path) = self.way_of(id).and_then(|way| paths.get(&way)) else {
                continue;
            };
            if by_id.len() <= id.index() {
                by_id.resize(id.index() + 1, None);
            }
            by_id[id.index()] = Some(real_server(config, path, id, around.cookies, &egress));
        }
        by_id.into()
    }
}

/// Where a real server's packets are to leave: a path, none where there is no way now, or one each
/// for IPv4 and IPv6 packets where IPsec policies shall see them.
pub fn path_targets(path: &RealPath, hop_limit: u8) -> impl Iterator<Item = PathTarget> {
    let destination = path.address;
    let (first, second) = match (path.egress, path.sources.first().copied()) {
        (Egress::Direct(direct), _) => {
            (Some(PathTarget::Direct { interface: direct.ifindex }), None)
        }
        (
            Egress::Kernel(KernelReason::NoRoute | KernelReason::Refused | KernelReason::Local),
            _,
        )
        | (Egress::Kernel(_), None)
        | (Egress::None(_), _) => (None, None),
        (Egress::Kernel(KernelReason::Ipsec | KernelReason::IpsecUnknown), Some(source)) => {
            let [ipv4, ipv6] = [adit_tunnel::PROTOCOL_IPV4, adit_tunnel::PROTOCOL_IPV6]
                .map(|protocol| PathTarget::Protected { destination, source, protocol, hop_limit });
            (Some(ipv4), Some(ipv6))
        }
        (Egress::Kernel(_), Some(source)) => {
            (Some(PathTarget::Kernel { destination, source }), None)
        }
    };
    first.into_iter().chain(second)
}

fn real_server(
    config: &Config,
    path: &RealPath,
    id: RealId,
    cookies: CookieRoot,
    egress: impl Fn(&PathTarget) -> Option<EgressId>,
) -> RealServer {
    let outers = outers(path, config.tunnel.ttl);
    let mut open = path_targets(path, config.tunnel.ttl).map(|target| egress(&target));
    let link = match (path.egress, open.next().flatten(), open.next().flatten()) {
        (Egress::Direct(direct), Some(egress), _) => {
            let header = link_header(&direct, path.address);
            match header.first_chunk() {
                Some(macs) if path.tunnel == RealTunnel::Direct => {
                    Link::Segment { egress, macs: *macs }
                }
                _ if outers.encapsulation().is_some() => Link::Direct { egress, header },
                _ => Link::None,
            }
        }
        // One of two that could not be opened must not send the other's packets past a policy.
        (Egress::Kernel(KernelReason::Ipsec | KernelReason::IpsecUnknown), ipv4, ipv6) => {
            match (ipv4, ipv6) {
                (Some(ipv4), Some(ipv6)) => Link::Protected { ipv4, ipv6 },
                _ => Link::None,
            }
        }
        (Egress::Kernel(_), Some(egress), _) => Link::Kernel { egress },
        (Egress::Direct(_) | Egress::Kernel(_), None, _) | (Egress::None(_), _, _) => Link::None,
    };
    RealServer {
        outers,
        link,
        // Devices with more than 65535 (loopback) carry any IP packet there is.
        link_mtu: u16::try_from(path.mtu).unwrap_or(u16::MAX),
        cookie_secrets: cookies.secrets(id),
    }
}

/// The outer headers towards a real server. Without a source there is none to write: its flows stay,
/// and their packets are dropped as "no_egress" until there is a route.
fn outers(path: &RealPath, hop_limit: u8) -> Outers {
    let Some(kind) = path.tunnel.encapsulation() else { return Outers::default() };
    // Sources are of the real server's family, and a hop limit of 0 is no configuration's.
    let template = |source| OuterTemplate::with(kind, source, path.address, hop_limit).ok();
    path.sources.iter().copied().filter_map(template).collect()
}

/// What a real server is in the region.
pub(super) fn real_identity(address: IpAddr, tunnel: RealTunnel) -> RealIdentity {
    RealIdentity { address: packet::address(address), tunnel: tunnel_identity(tunnel) }
}

/// What a VIP is in the region.
pub(super) fn vip_identity(address: IpAddr) -> VipIdentity {
    VipIdentity { address: packet::address(address) }
}

/// How a way is named in the region's directory.
fn tunnel_identity(tunnel: RealTunnel) -> TunnelIdentity {
    let (kind, port, checksum) = match tunnel {
        RealTunnel::Ipip => return TunnelIdentity::IPIP,
        RealTunnel::Gre { checksum } => (2, 0, checksum),
        RealTunnel::Gue { port, checksum } => (3, port, checksum),
        RealTunnel::Direct => (4, 0, false),
    };
    TunnelIdentity { kind, port, checksum }
}

/// The reverse; `None` for one that this version does not know.
fn tunnel_of(identity: TunnelIdentity) -> Option<RealTunnel> {
    let TunnelIdentity { kind, port, checksum } = identity;
    match kind {
        1 => Some(RealTunnel::Ipip),
        2 => Some(RealTunnel::Gre { checksum }),
        3 => Some(RealTunnel::Gue { port, checksum }),
        4 => Some(RealTunnel::Direct),
        _ => None,
    }
}

fn link_header(direct: &DirectPath, outer: IpAddr) -> [u8; 14] {
    let ethertype = match outer {
        IpAddr::V4(_) => packet::ETHERTYPE_IPV4,
        IpAddr::V6(_) => packet::ETHERTYPE_IPV6,
    };
    let mut header = [0; 14];
    header[..6].copy_from_slice(&direct.next_hop_mac);
    header[6..12].copy_from_slice(&direct.source_mac);
    header[12..].copy_from_slice(&ethertype.to_be_bytes());
    header
}

fn service_of<'a>(snapshot: &'a Snapshot, name: &str) -> Option<&'a Service> {
    snapshot.services.services().iter().find(|s| *s.name == *name)
}

fn protocol(protocol: config::Protocol) -> Protocol {
    match protocol {
        config::Protocol::Tcp => Protocol::Tcp,
        config::Protocol::Udp => Protocol::Udp,
    }
}

fn ports(ports: &config::Ports) -> Ports {
    match ports {
        config::Ports::Exact(port) => Ports::List([*port].into()),
        config::Ports::List(list) => Ports::List(list.as_slice().into()),
        config::Ports::Range(first, last) => Ports::Range(*first..=*last),
        config::Ports::Any => Ports::Any,
    }
}

fn df(df: DontFragment) -> DfPolicy {
    match df {
        DontFragment::Copy => DfPolicy::Copy,
        DontFragment::Clear => DfPolicy::Clear,
    }
}

fn timeouts(t: &config::Timeouts) -> Timeouts {
    Timeouts {
        half_open: Ticks::span(t.tcp_half_open),
        unproven: Ticks::span(t.tcp_unproven),
        established: Ticks::span(t.tcp_established),
        fin: Ticks::span(t.tcp_fin),
        rst: Ticks::span(t.tcp_rst),
        udp: Ticks::span(t.udp),
    }
}

fn persistence(service: &config::Service) -> Option<PersistencePolicy> {
    let persistence = service.persistence.as_ref()?;
    let group = match &persistence.group {
        Some(name) => PersistenceGroup::named(name),
        None => {
            let (form, first) = match &service.ports {
                config::Ports::Exact(port) => (0, *port),
                config::Ports::List(list) => (1, list.first().copied().unwrap_or(0)),
                config::Ports::Range(first, _) => (2, *first),
                config::Ports::Any => (3, 0),
            };
            let number = protocol(service.protocol).number();
            // Four forms of ports for each length, so that a prefix is not its first address.
            let form = form + 4 * service.vip.host_bits();
            PersistenceGroup::of_service(service.vip.address(), form, first, number)
        }
    };
    Some(PersistencePolicy {
        group,
        timeout: persistence.timeout,
        ipv4_prefix: persistence.ipv4_prefix,
        ipv6_prefix: persistence.ipv6_prefix,
    })
}

/// The limits of a service; what of them is used comes from `before` while they are the same.
fn admission(
    service: &config::Service,
    workers: u16,
    seed: [u64; 4],
    before: Option<&Service>,
) -> Option<Arc<Admission>> {
    let rate = |new: config::NewFlows| Rate { per_second: new.per_second, burst: new.burst };
    let policy = AdmissionPolicy {
        total: service.limits.total.map(rate),
        client: service.limits.client.map(|client| ClientRate {
            rate: rate(client.new),
            ipv4_prefix: client.ipv4_prefix,
            ipv6_prefix: client.ipv6_prefix,
        }),
        half_open: service.limits.half_open.map(|most| most.div_ceil(u32::from(workers.max(1)))),
    };
    if policy == AdmissionPolicy::default() {
        return None;
    }
    let known = before.and_then(|before| before.admission.as_ref());
    let known = known.filter(|admission| *admission.policy() == policy);
    Some(known.map_or_else(|| Arc::new(Admission::new(policy, seed)), Arc::clone))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse;
    use crate::dataplane::time::Time;

    const TEXT: &str = "[director]\ninterface = \"eth0\"\n\
        [[service]]\nname = \"list\"\nvip = \"192.0.2.1\"\nport = [80, 443]\nscheduler = \"wrr\"\n\
        [[service.real]]\naddress = \"10.0.0.1\"\n\
        [[service]]\nname = \"web\"\nvip = \"192.0.2.1\"\nport = 80\n\
        [[service.real]]\naddress = \"10.0.0.1\"\n[[service.real]]\naddress = \"10.0.0.2\"\n";

    fn config(text: &str) -> Config {
        parse(text, "t").unwrap()
    }

    fn world() -> World<Vec<Entry>> {
        let entries = || (0..8).map(|_| Entry::default()).collect::<Vec<_>>();
        World::new(Directory::new(entries()), Directory::new(entries()), HashKey::DEFAULT)
    }

    fn path(address: &str, egress: Egress) -> RealPath {
        RealPath {
            address: address.parse().unwrap(),
            tunnel: RealTunnel::Ipip,
            sources: vec![IpAddr::from([10, 0, 0, 254])],
            mtu: 1500,
            interface: Some("eth0".into()),
            next_hop: None,
            egress,
        }
    }

    fn survey() -> Survey {
        let direct = DirectPath { ifindex: 3, source_mac: [1; 6], next_hop_mac: [2; 6] };
        let paths = vec![
            path("10.0.0.1", Egress::Direct(direct)),
            path("10.0.0.2", Egress::Kernel(KernelReason::NotEthernet)),
        ];
        Survey { paths, next_hops: Vec::new() }
    }

    fn build(
        world: &mut World<Vec<Entry>>,
        config: &Config,
        counters: &AllCounters,
        previous: Option<&Snapshot>,
    ) -> Snapshot {
        let workers = config.director.workers.max(1);
        build_for(workers, world, config, counters, previous)
    }

    fn build_for(
        workers: u16,
        world: &mut World<Vec<Entry>>,
        config: &Config,
        counters: &AllCounters,
        previous: Option<&Snapshot>,
    ) -> Snapshot {
        world.enter(config, counters).unwrap();
        let survey = survey();
        let around = Surroundings {
            survey: &survey,
            tap_mac: [9; 6],
            client_mac: None,
            cookies: CookieRoot { secret: [1; 16], epoch: 5 },
            counters: counters.destinations(),
            health: &Board::default(),
            workers,
            drains: &Drains::default(),
        };
        let egress = |target: &PathTarget| match target {
            PathTarget::Direct { .. } => Some(EgressId(1)),
            PathTarget::Kernel { .. } => Some(EgressId(2)),
            PathTarget::Protected { protocol, .. } => Some(EgressId(u16::from(*protocol))),
        };
        world.snapshot(config, HashKey::DEFAULT, &around, egress, previous).unwrap()
    }

    #[test]
    fn a_snapshot_says_what_the_configuration_says() {
        let counters = AllCounters::new(8, 1);
        let mut world = world();
        let snapshot = build(&mut world, &config(TEXT), &counters, None);
        let vip = snapshot.services.vip(&packet::address("192.0.2.1".parse().unwrap())).unwrap();
        let name = |port| snapshot.services.find(vip, 6, port).map(|s| s.name.to_string());
        assert_eq!(name(80).as_deref(), Some("web"), "a single port goes before a list");
        assert_eq!(name(443).as_deref(), Some("list"));
        assert_eq!(name(81), None);
        let reals: Vec<_> = snapshot.reals.iter().map(|(_, real)| real.link).collect();
        let header = [2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 8, 0];
        assert_eq!(reals[0], Link::Direct { egress: EgressId(1), header });
        assert_eq!(reals[1], Link::Kernel { egress: EgressId(2) });
        assert_eq!(snapshot.destinations.iter().flatten().count(), 3);
    }

    #[test]
    fn policies_see_packets_of_either_version() {
        for reason in [KernelReason::Ipsec, KernelReason::IpsecUnknown] {
            let path = path("10.0.0.1", Egress::Kernel(reason));
            let targets: Vec<_> = path_targets(&path, 33).collect();
            let [destination, source] = [path.address, path.sources[0]];
            let protected =
                |protocol| PathTarget::Protected { destination, source, protocol, hop_limit: 33 };
            assert_eq!(targets, [protected(4), protected(41)]);

            let config = config(TEXT);
            let cookies = CookieRoot { secret: [1; 16], epoch: 5 };
            let link = |opens: &[u8]| {
                let egress = |target: &PathTarget| match target {
                    PathTarget::Protected { protocol, .. } => {
                        opens.contains(protocol).then_some(EgressId(u16::from(*protocol)))
                    }
                    PathTarget::Direct { .. } | PathTarget::Kernel { .. } => None,
                };
                real_server(&config, &path, RealId(0), cookies, egress).link
            };
            let both = Link::Protected { ipv4: EgressId(4), ipv6: EgressId(41) };
            assert_eq!([link(&[4, 41]), link(&[4]), link(&[41])], [both, Link::None, Link::None]);
        }
    }

    #[test]
    fn one_address_by_two_kinds_is_two_real_servers() {
        let counters = AllCounters::new(8, 1);
        let mut world = world();
        let two = TEXT
            .replacen("address = \"10.0.0.1\"", "address = \"10.0.0.1\"\ntunnel = \"gre\"", 1)
            .replace("10.0.0.2\"", "10.0.0.2\"\ntunnel = \"direct\"");
        let config = config(&two);
        world.enter(&config, &counters).unwrap();
        let gre = RealTunnel::Gre { checksum: false };
        let wanted = world.wanted_paths(&config);
        let [one, two] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let reals = [(one, RealTunnel::Ipip), (one, gre), (two, RealTunnel::Direct)];
        assert_eq!(wanted.reals, reals);

        let direct = DirectPath { ifindex: 3, source_mac: [1; 6], next_hop_mac: [2; 6] };
        let way = |(address, tunnel): (IpAddr, _)| RealPath {
            address,
            tunnel,
            sources: vec![IpAddr::from([10, 0, 0, 253]), IpAddr::from([10, 0, 0, 254])],
            ..path("10.0.0.1", Egress::Direct(direct))
        };
        let survey = Survey { paths: reals.into_iter().map(way).collect(), next_hops: Vec::new() };
        let around = Surroundings {
            survey: &survey,
            tap_mac: [9; 6],
            client_mac: None,
            cookies: CookieRoot { secret: [1; 16], epoch: 5 },
            counters: counters.destinations(),
            health: &Board::default(),
            workers: 1,
            drains: &Drains::default(),
        };
        let snapshot = world
            .snapshot(&config, HashKey::DEFAULT, &around, |_| Some(EgressId(1)), None)
            .unwrap();
        let real = |way| {
            let id = snapshot.reals.iter().find(|(id, _)| world.way_of(*id) == Some(way));
            id.unwrap().1
        };
        assert_eq!(real(reals[0]).outers.encapsulation(), Some(adit_tunnel::Encapsulation::Ipip));
        assert_eq!(real(reals[1]).outers.iter().count(), 2, "a header for each source");
        assert_eq!(real(reals[1]).outers.overhead(), 24);
        assert_eq!(real(reals[2]).outers.encapsulation(), None);
        let macs = [2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1];
        assert_eq!(real(reals[2]).link, Link::Segment { egress: EgressId(1), macs });
    }

    #[test]
    fn ways_survive_the_directory() {
        for tunnel in [
            RealTunnel::Ipip,
            RealTunnel::Gre { checksum: false },
            RealTunnel::Gre { checksum: true },
            RealTunnel::Gue { port: 6080, checksum: false },
            RealTunnel::Gue { port: 65_535, checksum: true },
            RealTunnel::Direct,
        ] {
            assert_eq!(tunnel_of(tunnel_identity(tunnel)), Some(tunnel));
        }
        assert_eq!(tunnel_of(TunnelIdentity { kind: 5, ..TunnelIdentity::IPIP }), None);
    }

    #[test]
    fn what_is_taken_out_stays_in_force() {
        let counters = AllCounters::new(8, 1);
        let mut world = world();
        let first = build(&mut world, &config(TEXT), &counters, None);
        let less = TEXT.replace("[[service.real]]\naddress = \"10.0.0.2\"\n", "");
        let second = build(&mut world, &config(&less), &counters, Some(&first));
        assert_eq!(second.reals.iter().count(), 2, "its flows need the way");
        assert_eq!(second.destinations.iter().flatten().count(), 3);
        let web =
            |s: &Snapshot| s.services.services().iter().position(|s| &*s.name == "web").unwrap();
        assert_eq!(second.services.services()[web(&second)].members.len(), 1);
        assert!(second.generation > first.generation);

        // A VIP without services is answered while it has flows.
        let none =
            build(&mut world, &config("[director]\ninterface = \"eth0\"\n"), &counters, None);
        assert_eq!(none.services.vips().count(), 1);
        world.destinations.retain(|_, _| true);
        let none =
            build(&mut world, &config("[director]\ninterface = \"eth0\"\n"), &counters, None);
        assert_eq!((none.services.vips().count(), none.reals.iter().count()), (0, 0));
    }

    #[test]
    fn what_a_scheduler_and_a_threshold_remember_is_carried_over_by_name_and_address() {
        let counters = AllCounters::new(8, 1);
        let mut world = world();
        let text =
            TEXT.replace("10.0.0.2\"", "10.0.0.2\"\nmax_connections = 4\nmin_connections = 2");
        let first = build(&mut world, &config(&text), &counters, None);
        let service = |snapshot: &Snapshot, name: &str| {
            snapshot.services.services().iter().position(|s| &*s.name == name).unwrap()
        };
        let web = &first.services.services()[service(&first, "web")];
        let gauge = &counters.destinations()[web.destinations[1].index()].inactive;
        gauge.add(4);
        web.note_load(web.destinations[1], counters.destinations());
        gauge.sub(1);
        let overloaded = |snapshot: &Snapshot| {
            let web = &snapshot.services.services()[service(snapshot, "web")];
            let last = web.members.len() - 1;
            web.candidates(counters.destinations(), Time::ZERO).is_overloaded(last)
        };
        assert!(overloaded(&first), "three, after four");
        // The first real server leaves, so that the second has its place.
        let less =
            text.replace("port = 80\n[[service.real]]\naddress = \"10.0.0.1\"\n", "port = 80\n");
        let second = build(&mut world, &config(&less), &counters, Some(&first));
        assert_eq!(second.services.services()[service(&second, "web")].members.len(), 1);
        assert!(overloaded(&second));
        let fresh = build(&mut world, &config(&less), &counters, None);
        assert!(!overloaded(&fresh), "nothing to remember");
    }

    #[test]
    fn a_prefix_is_one_service_on_each_of_its_addresses() {
        let counters = AllCounters::new(8, 1);
        let entries = || (0..32).map(|_| Entry::default()).collect::<Vec<_>>();
        let mut world =
            World::new(Directory::new(entries()), Directory::new(entries()), HashKey::DEFAULT);
        let service = |name: &str, vip: &str, port: &str| {
            format!(
                "[[service]]\nname = \"{name}\"\nvip = \"{vip}\"\nport = {port}\n\
                 [[service.real]]\naddress = \"10.0.0.1\"\n"
            )
        };
        let head = "[director]\ninterface = \"eth0\"\n";
        let one = service("one", "192.0.2.3", "\"any\"");
        let net = service("net", "192.0.2.0/29", "[80, 443]");
        let half = service("half", "192.0.2.4/30", "\"1-100\"");
        let all = config(&format!("{head}{net}{one}{half}"));
        let first = build(&mut world, &all, &counters, None);
        let find = |snapshot: &Snapshot, last: u8, port: u16| -> Option<String> {
            let address = packet::address(IpAddr::from([192, 0, 2, last]));
            let vip = snapshot.services.vip(&address)?;
            snapshot.services.find(vip, 6, port).map(|s| s.name.to_string())
        };
        assert_eq!(first.services.vips().count(), 8);
        // As the configuration says, of every address and some ports.
        for last in 0..9 {
            for port in [80, 81, 101, 443] {
                let vip = IpAddr::from([192, 0, 2, last]);
                let expected = all.service_for(vip, port, config::Protocol::Tcp);
                let expected = expected.map(|s| s.name.clone());
                assert_eq!(find(&first, last, port), expected, "{vip}:{port}");
            }
        }
        assert_eq!(find(&first, 3, 80).as_deref(), Some("one"));
        assert_eq!(find(&first, 5, 80).as_deref(), Some("half"));
        assert_eq!(find(&first, 5, 443).as_deref(), Some("net"));
        // One destination for all addresses; it keeps them all in force while it drains.
        assert_eq!(first.destinations.iter().flatten().count(), 3);
        let second = build(&mut world, &config(&format!("{head}{one}")), &counters, Some(&first));
        assert_eq!((second.services.vips().count(), find(&second, 5, 80)), (8, None));
        world.destinations.retain(|_, _| true);
        let third = build(&mut world, &config(&format!("{head}{one}")), &counters, Some(&second));
        assert_eq!(third.services.vips().count(), 1);
        // The prefix and its first address do not remember clients for each other.
        let persistent = |vip: &str| {
            let text = format!("{head}{}persistence = {{}}\n", service("s", vip, "80"))
                .replace("[[service.real]]\naddress = \"10.0.0.1\"\n", "");
            super::persistence(&config(&text).services[0]).unwrap().group
        };
        assert_ne!(persistent("192.0.2.0/29"), persistent("192.0.2.0"));
    }

    #[test]
    fn limits_go_on_while_they_are_the_same() {
        let counters = AllCounters::new(8, 1);
        let mut world = world();
        let text = TEXT.replace(
            "port = 80\n",
            "port = 80\nlimits = { new_per_second = 2, new_burst = 3, half_open = 5 }\n",
        );
        let admission = |snapshot: &Snapshot| {
            let services = snapshot.services.services();
            services.iter().find_map(|s| s.admission.clone()).unwrap()
        };
        let now = Time(1_000_000_000_000);
        let client = IpAddr::from([203, 0, 113, 1]);
        let first = build(&mut world, &config(&text), &counters, None);
        let admitted = |snapshot: &Snapshot| {
            (0..9).filter(|_| admission(snapshot).admit(now, client).is_ok()).count()
        };
        assert_eq!(admitted(&first), 3);
        let second = build(&mut world, &config(&text), &counters, Some(&first));
        assert_eq!(admitted(&second), 0, "what was used stays used");
        let more = text.replace("new_burst = 3", "new_burst = 4");
        let third = build(&mut world, &config(&more), &counters, Some(&second));
        assert_eq!(admitted(&third), 4, "other limits, counted afresh");
        // Each worker has its share of what is half-open.
        assert_eq!(admission(&third).policy().half_open, Some(5));
        // Of the workers that run: how many cores there are may have changed since they began.
        let cores = config(&text.replace("[director]\n", "[director]\nworkers = 0\n"));
        for (workers, share) in [(1, 5), (2, 3), (4, 2), (1000, 1)] {
            let shared = build_for(workers, &mut world, &cores, &counters, Some(&third));
            assert_eq!(admission(&shared).policy().half_open, Some(share), "{workers}");
        }
    }

    #[test]
    fn cookies_differ_by_real_server_and_epoch_and_overlap() {
        let root = CookieRoot { secret: [7; 16], epoch: 9 };
        let [now, before] = root.secrets(RealId(1));
        let later = CookieRoot { epoch: 10, ..root };
        assert_eq!(later.secrets(RealId(1))[1], now);
        assert_ne!(now, before);
        assert_ne!(now, root.secrets(RealId(2))[0]);
        assert!(!format!("{root:?}").contains('7'));
    }
}
