//! The checked configuration. Every value here has passed the rules of this module's siblings.

use super::tunnel::{RealTunnel, TunnelKind};
use crate::control::finding::Finding;
use crate::dataplane::scheduler::SchedulerFlag;
pub use crate::dataplane::scheduler::SchedulerKind as Scheduler;
use crate::dataplane::scheduler::table::table_size;
pub use crate::dataplane::vip_prefix::VipPrefix;
use serde::{Deserialize, Serialize, Serializer};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// A whole configuration, defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// `[director]`: this host.
    pub director: Director,
    /// `[tunnel]`: the outer header.
    pub tunnel: Tunnel,
    /// `[limits]`: what the director spends on others.
    pub limits: Limits,
    /// `[health]`: what checks of real servers have in common.
    #[serde(skip_serializing_if = "Health::is_default")]
    pub health: Health,
    /// `[[service]]`, in the order of their names.
    pub services: Vec<Service>,
}

/// This host: its devices and what it may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Director {
    /// Name of the TAP device Adit makes.
    pub tap: String,
    /// The interface that faces the clients; in bridge capture the bridge itself.
    pub interface: String,
    /// TAP queues, a thread each; 0 is one for each core.
    pub workers: u16,
    /// How packets for a VIP come to the TAP.
    pub capture: Capture,
    /// How the network learns where a VIP is.
    pub announce: Announce,
    /// How long the director goes on forwarding after it has withdrawn its VIPs' routes at the end;
    /// only where routes announce them.
    #[serde(serialize_with = "as_seconds_if_any", skip_serializing_if = "Option::is_none")]
    pub withdraw_wait: Option<Duration>,
    /// Slots of the flow table.
    pub max_connections: u32,
    /// File of the 128-bit key of the placement hash; without one a documented constant is used.
    pub hash_key_file: Option<PathBuf>,
    /// How the worker reads the TAP.
    pub io: IoEngine,
    /// Directory of what outlives the process.
    pub state_dir: PathBuf,
    /// Path of the admin socket.
    pub socket: PathBuf,
    /// Group whose members may look: they get a second socket, which changes nothing.
    pub admin_group: Option<String>,
    /// Frames the kernel queues for the TAP.
    pub tap_queue_length: u32,
    /// MTU of the TAP; by default that of `interface`.
    pub mtu: Option<u16>,
    /// Where metrics are served over HTTP; nowhere without it.
    pub metrics: Option<SocketAddr>,
}

/// How packets for a VIP come to the TAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Capture {
    /// Adit routes each VIP to the TAP, with a blackhole route behind.
    Route,
    /// The TAP is a port of the bridge that faces the clients, and answers for the VIPs there.
    Bridge,
    /// The operator brings the packets to the TAP.
    Manual,
}

/// How the network learns where a VIP is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Announce {
    /// Adit answers ARP requests and neighbour solicitations.
    Arp,
    /// A routing daemon exports the VIP's route to the TAP, which is there while the VIP can serve.
    Route,
    /// Somebody else sees to it, such as a static route on the router.
    None,
}

/// How the worker reads the TAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum IoEngine {
    /// The best the kernel offers, found by trying.
    Auto,
    /// `IORING_OP_READ_MULTISHOT` into a buffer ring (Linux 6.7).
    Multishot,
    /// Poll, then read until nothing is left (any kernel with io_uring).
    Poll,
}

/// The outer header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tunnel {
    /// How packets are carried, where neither a service nor a real server says it.
    pub kind: TunnelKind,
    /// Outer sources towards IPv4 real servers, over which flows spread; by default the route's own.
    #[serde(serialize_with = "as_one_or_more")]
    pub source_v4: Vec<Ipv4Addr>,
    /// Outer sources towards IPv6 real servers; by default the route's own.
    #[serde(serialize_with = "as_one_or_more")]
    pub source_v6: Vec<Ipv6Addr>,
    /// Outer TTL or hop limit.
    pub ttl: u8,
}

/// What happens to Don't Fragment on the outer IPv4 header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DontFragment {
    /// As on the inner packet, so that path MTU discovery works end to end.
    Copy,
    /// Never set: for paths that filter the errors that discovery needs.
    Clear,
}

/// How long a flow stays without a packet, by its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Timeouts {
    /// A SYN was seen and nothing else.
    #[serde(serialize_with = "as_seconds")]
    pub tcp_half_open: Duration,
    /// The handshake seems finished, or the flow was derived again after a loss of state.
    #[serde(serialize_with = "as_seconds")]
    pub tcp_unproven: Duration,
    /// The flow has carried data for a while.
    #[serde(serialize_with = "as_seconds")]
    pub tcp_established: Duration,
    /// The client has sent FIN.
    #[serde(serialize_with = "as_seconds")]
    pub tcp_fin: Duration,
    /// The client has sent RST.
    #[serde(serialize_with = "as_seconds")]
    pub tcp_rst: Duration,
    /// Any UDP flow.
    #[serde(serialize_with = "as_seconds")]
    pub udp: Duration,
}

/// What the director spends on others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Packets of its own (ICMP errors, resets, echo replies) per second to one client prefix.
    pub emitted_per_client: u32,
    /// Packets of its own per second to everybody.
    pub emitted_total: u32,
}

/// What checks of real servers have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Health {
    /// First and last source port of checks.
    pub ports: (u16, u16),
    /// Where checks of IPv4 VIPs come from; by default the outer source towards the real server.
    pub source_v4: Option<Ipv4Addr>,
    /// Where checks of IPv6 VIPs come from; likewise.
    pub source_v6: Option<Ipv6Addr>,
}

/// How it is found out whether a service's real servers can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What is tried.
    pub kind: CheckKind,
    /// TCP port of the VIP that is connected to.
    pub port: u16,
    /// Time between the starts of two checks.
    #[serde(serialize_with = "as_milliseconds")]
    pub interval: Duration,
    /// How long an answer may take.
    #[serde(serialize_with = "as_milliseconds")]
    pub timeout: Duration,
    /// Time between the starts of two checks of a real server that is down.
    #[serde(serialize_with = "as_milliseconds")]
    pub down_interval: Duration,
    /// Successful checks in a row that bring one back.
    pub rise: u8,
    /// Failed checks in a row that take one out.
    pub fall: u8,
    /// What one is until the first check has ended.
    pub initial: Initial,
}

/// What a check tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckKind {
    /// A TCP connection to the VIP, through the tunnel.
    Tcp,
}

/// What a real server is that was never checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Initial {
    /// It takes no new flows: checks first, then traffic.
    Down,
    /// It takes them until it has failed.
    Up,
}

impl Default for Health {
    fn default() -> Self {
        Health { ports: super::limits::DEFAULT_PROBE_PORTS, source_v4: None, source_v6: None }
    }
}

impl Health {
    fn is_default(&self) -> bool {
        *self == Health::default()
    }

    /// Real servers that can be checked at one VIP and port.
    #[must_use]
    pub fn blocks(&self) -> usize {
        let (first, last) = self.ports;
        (usize::from(last - first) + 1) / usize::from(super::limits::PROBE_PORTS)
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = humantime::format_duration;
        let Check { kind: CheckKind::Tcp, port, interval, timeout, down_interval, .. } = self;
        let Check { rise, fall, initial, .. } = self;
        let initial = match initial {
            Initial::Down => "down",
            Initial::Up => "up",
        };
        write!(
            f,
            "tcp port {port} every {} within {}, rise {rise}, fall {fall}, down every {}, initial \
             {initial}",
            show(*interval),
            show(*timeout),
            show(*down_interval),
        )
    }
}

/// A virtual service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Unique name.
    pub name: String,
    /// The virtual IP clients talk to, or a prefix of them.
    pub vip: VipPrefix,
    /// Which destination ports belong to it.
    pub ports: Ports,
    /// Its transport protocol.
    pub protocol: Protocol,
    /// How a real server is chosen for a new flow.
    pub scheduler: Scheduler,
    /// What its scheduler does otherwise than by default, sorted, each once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scheduler_flags: Vec<SchedulerFlag>,
    /// Whether each datagram is scheduled anew and no flow is kept; UDP alone.
    #[serde(skip_serializing_if = "is_false")]
    pub one_packet: bool,
    /// Whether a client comes back to the same real server.
    pub persistence: Option<Persistence>,
    /// What it takes of new flows.
    #[serde(skip_serializing_if = "ServiceLimits::is_none")]
    pub limits: ServiceLimits,
    /// Timeouts in force: the service's own, else those of `[timeouts]`.
    pub timeouts: Timeouts,
    /// Outer Don't Fragment.
    pub df: DontFragment,
    /// How it is found out whether its real servers can serve; nothing is checked without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
    /// Real servers, in the order of their addresses: order in the file means nothing.
    pub reals: Vec<Real>,
}

/// Destination ports. Where services overlap, exact wins over list, list over range, range over
/// any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    /// One port.
    Exact(u16),
    /// Several, sorted, without duplicates.
    List(Vec<u16>),
    /// First and last, both in.
    Range(u16, u16),
    /// Every port, 0 too.
    Any,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A client comes back to the same real server for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Persistence {
    /// How long after the last established flow.
    #[serde(serialize_with = "as_seconds")]
    pub timeout: Duration,
    /// Leading bits of an IPv4 client's address that make a client.
    pub ipv4_prefix: u8,
    /// Leading bits of an IPv6 client's address that make a client.
    pub ipv6_prefix: u8,
    /// Services of one group send a client to one real server; without one, a service is alone.
    pub group: Option<String>,
}

/// What a service takes of new flows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceLimits {
    /// New flows of everybody.
    pub total: Option<NewFlows>,
    /// New flows of one client prefix.
    pub client: Option<ClientLimit>,
    /// Half-open flows at a time.
    pub half_open: Option<u32>,
}

/// A rate of new flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewFlows {
    /// So many a second in the long run.
    pub per_second: u32,
    /// So many at once after a pause.
    pub burst: u32,
}

/// A rate of new flows of each client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientLimit {
    /// The rate.
    pub new: NewFlows,
    /// Leading bits of an IPv4 client's address that make a client.
    pub ipv4_prefix: u8,
    /// Leading bits of an IPv6 client's address that make a client.
    pub ipv6_prefix: u8,
}

impl ServiceLimits {
    /// Whether it takes all that come.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for ServiceLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some(NewFlows { per_second, burst }) = self.total {
            parts.push(format!("{per_second} new/s (burst {burst})"));
        }
        if let Some(ClientLimit { new, ipv4_prefix, ipv6_prefix }) = self.client {
            parts.push(format!(
                "{} new/s (burst {}) per /{ipv4_prefix} and /{ipv6_prefix}",
                new.per_second, new.burst
            ));
        }
        if let Some(half_open) = self.half_open {
            parts.push(format!("{half_open} half-open"));
        }
        f.write_str(&if parts.is_empty() { "none".to_owned() } else { parts.join(", ") })
    }
}

/// A real server of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Real {
    /// Where its tunnel ends.
    pub address: IpAddr,
    /// Its share of new flows, relative to the others; 0 means drained.
    pub weight: u16,
    /// Connections from which on it takes no new ones (`ipvsadm -x`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Connections below which it takes new ones again (`ipvsadm -y`); by default three quarters of
    /// `max_connections`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_connections: Option<u32>,
    /// How packets to it are carried.
    #[serde(skip_serializing_if = "RealTunnel::is_ipip")]
    pub tunnel: RealTunnel,
}

impl Tunnel {
    /// Outer sources towards a real server; none where the route's own is taken.
    #[must_use]
    pub fn sources_towards(&self, real: IpAddr) -> Vec<IpAddr> {
        match real {
            IpAddr::V4(_) => self.source_v4.iter().copied().map(IpAddr::V4).collect(),
            IpAddr::V6(_) => self.source_v6.iter().copied().map(IpAddr::V6).collect(),
        }
    }

    /// All of them.
    pub fn sources(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.source_v4.iter().copied().map(IpAddr::V4);
        v4.chain(self.source_v6.iter().copied().map(IpAddr::V6))
    }
}

impl Service {
    /// Slots of its placement table, where its scheduler has one.
    #[must_use]
    pub fn table_size(&self) -> Option<u32> {
        let size = || table_size(self.reals.len()).ok();
        self.scheduler.has_table().then(size).flatten()
    }
}

impl Config {
    /// The service that takes a packet to `vip`:`port`: that with the longest prefix, then by the
    /// precedence of [`Ports`].
    #[must_use]
    pub fn service_for(&self, vip: IpAddr, port: u16, protocol: Protocol) -> Option<&Service> {
        self.services
            .iter()
            .filter(|s| s.protocol == protocol && s.ports.contains(port) && s.vip.contains(vip))
            .min_by_key(|s| (Reverse(s.vip.length()), s.ports.precedence()))
    }

    /// Every VIP and every prefix of them once, in order.
    #[must_use]
    pub fn vips(&self) -> Vec<VipPrefix> {
        let mut vips: Vec<VipPrefix> = self.services.iter().map(|s| s.vip).collect();
        vips.sort_unstable();
        vips.dedup();
        vips
    }

    /// Every real server once with each way in which it is reached, in order.
    #[must_use]
    pub fn real_tunnels(&self) -> Vec<(IpAddr, RealTunnel)> {
        let reals = self.services.iter().flat_map(|s| &s.reals);
        let mut all: Vec<_> = reals.map(|r| (r.address, r.tunnel)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Every real server's address once, in order.
    #[must_use]
    pub fn real_addresses(&self) -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> =
            self.services.iter().flat_map(|s| s.reals.iter().map(|r| r.address)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Services of persistence groups that place a client differently than the first of their
    /// group: both names, and in what they differ.
    fn uneven_groups(&self) -> Vec<(&str, &str, &'static str)> {
        let mut firsts: BTreeMap<&str, &Service> = BTreeMap::new();
        let mut uneven = Vec::new();
        for service in &self.services {
            let group = service.persistence.as_ref().and_then(|p| p.group.as_deref());
            let Some(group) = group else { continue };
            let first = *firsts.entry(group).or_insert(service);
            let weights = |s: &Service| s.reals.iter().map(|r| r.weight).collect::<Vec<_>>();
            let what = if first.scheduler != service.scheduler {
                "scheduler"
            } else if first.name != service.name && !service.scheduler.is_hash() {
                // Each takes turns, or looks at the connections, of its own.
                "whom their schedulers choose"
            } else if weights(first) != weights(service) {
                "weights"
            } else {
                continue;
            };
            uneven.push((first.name.as_str(), service.name.as_str(), what));
        }
        uneven
    }

    /// What is allowed and perhaps not meant.
    #[must_use]
    pub fn warnings(&self) -> Vec<Finding> {
        let mut warnings = Vec::new();
        let mut warn = |message: String, help: &str| {
            warnings.push(Finding::warning(message, help));
        };
        if self.services.is_empty() {
            warn("no service is configured".to_owned(), "the director starts and forwards nothing");
        }
        if self.director.hash_key_file.is_none() {
            warn(
                "no `hash_key_file`: the placement hash uses a constant everybody knows".to_owned(),
                "a client that knows the key can aim all its connections at one real server; \
                 make a key with: openssl rand -hex 16 > /etc/adit/hash.key",
            );
        }
        for (first, second, what) in self.uneven_groups() {
            warn(
                format!("services {first} and {second} of one persistence group differ in {what}"),
                "a client's first flows may go to several real servers, until one that is \
                 established decides",
            );
        }
        for service in &self.services {
            if service.reals.is_empty() {
                warn(
                    format!("service {} has no real server", service.name),
                    "its packets are dropped, counted as no_real_server",
                );
            } else if service.reals.iter().all(|r| r.weight == 0) {
                warn(
                    format!("every real server of service {} has weight 0", service.name),
                    "new connections are dropped, counted as no_real_server",
                );
            }
            let bounded = service.reals.iter().any(|r| r.max_connections.is_some());
            if service.one_packet && (service.scheduler.counts_connections() || bounded) {
                let what = if bounded { "max_connections" } else { service.scheduler.name() };
                warn(
                    format!("service {}: {what} counts connections", service.name),
                    "with one_packet there are none, so that it sees all real servers idle",
                );
            }
            let least = Duration::from_secs(2 * 3600 + 4 * 60);
            if service.protocol == Protocol::Tcp && service.timeouts.tcp_established < least {
                warn(
                    format!(
                        "service {}: tcp_established is {}",
                        service.name,
                        humantime::format_duration(service.timeouts.tcp_established)
                    ),
                    "RFC 5382 asks for 2h4m at least, as Linux sends its first keepalive after \
                     2h: idle sessions lose their entry before",
                );
            }
        }
        warnings
    }
}

impl Ports {
    /// Whether `port` is one of them.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        match self {
            Ports::Exact(one) => *one == port,
            Ports::List(list) => list.binary_search(&port).is_ok(),
            Ports::Range(first, last) => (*first..=*last).contains(&port),
            Ports::Any => true,
        }
    }

    /// Smaller wins.
    #[must_use]
    pub fn precedence(&self) -> u8 {
        match self {
            Ports::Exact(_) => 0,
            Ports::List(_) => 1,
            Ports::Range(..) => 2,
            Ports::Any => 3,
        }
    }

    /// A port both have, if any.
    #[must_use]
    pub fn common(&self, other: &Ports) -> Option<u16> {
        match (self, other) {
            (Ports::Any, Ports::Any) => Some(0),
            (Ports::Range(a, b), Ports::Range(c, d)) => {
                let first = *a.max(c);
                (first <= *b.min(d)).then_some(first)
            }
            (Ports::Exact(port), any) | (any, Ports::Exact(port)) => {
                any.contains(*port).then_some(*port)
            }
            (Ports::List(list), any) | (any, Ports::List(list)) => {
                list.iter().copied().find(|port| any.contains(*port))
            }
            (Ports::Any, Ports::Range(first, _)) | (Ports::Range(first, _), Ports::Any) => {
                Some(*first)
            }
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ports::Exact(port) => write!(f, "{port}"),
            Ports::List(list) => {
                let ports: Vec<String> = list.iter().map(u16::to_string).collect();
                f.write_str(&ports.join(","))
            }
            Ports::Range(first, last) => write!(f, "{first}-{last}"),
            Ports::Any => f.write_str("any"),
        }
    }
}

impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// For keys that came later: a configuration without them keeps the hash it has had.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_false(value: &bool) -> bool {
    !value
}

/// One as it was before there could be more: a configuration with one keeps the hash it has had.
fn as_one_or_more<T: Serialize, S: Serializer>(
    list: &[T],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match list {
        [] => serializer.serialize_none(),
        [one] => serializer.serialize_some(one),
        more => more.serialize(serializer),
    }
}

#[expect(clippy::ref_option, reason = "serde hands out references")]
fn as_seconds_if_any<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration.map(|duration| duration.as_secs()).serialize(serializer)
}

fn as_milliseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u128(duration.as_millis())
}

fn as_seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_secs())
}
