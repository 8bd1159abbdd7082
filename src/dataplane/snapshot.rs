//! What the core is told by control: one immutable snapshot, looked at once per batch.

use adit_tunnel::OuterTemplate;

use super::{
    conntrack::Timeouts,
    hash::HashKey,
    ids::{DestinationId, RealId, VipId},
    packet::{Address, address},
    probe::Probes,
    service::{DfPolicy, PersistencePolicy, ServiceTable},
    verdict::EgressId,
};

/// How packets leave for a real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Straight onto an Ethernet interface, with this link header.
    Direct {
        /// Egress path of the interface.
        egress: EgressId,
        /// Destination MAC, source MAC, ethertype.
        header: [u8; 14],
    },
    /// Through the kernel's routing (neighbour unknown, not Ethernet).
    Kernel {
        /// Egress path of the real server.
        egress: EgressId,
    },
    /// Through the kernel's IPsec policies: the kernel writes the outer header.
    Protected {
        /// Egress path of IPv4 packets.
        ipv4: EgressId,
        /// Egress path of IPv6 packets.
        ipv6: EgressId,
    },
    /// No route now.
    None,
}

/// A real server and the way to it.
#[derive(Clone, Debug)]
pub struct RealServer {
    /// Outer header towards it.
    pub template: OuterTemplate,
    /// Egress.
    pub link: Link,
    /// MTU of the route's first hop: the path MTU's upper bound, bytes of outer packet.
    pub link_mtu: u16,
    /// Cookie secrets of the present and the previous epoch.
    pub cookie_secrets: [u16; 2],
}

/// Real servers by id (`None` where an id is free), and by the ends of their tunnels.
#[derive(Debug, Default)]
pub struct RealServers {
    by_id: Box<[Option<RealServer>]>,
    /// Source and destination of each tunnel, sorted.
    by_tunnel: Box<[(Address, Address, RealId)]>,
}

impl From<Vec<Option<RealServer>>> for RealServers {
    fn from(by_id: Vec<Option<RealServer>>) -> Self {
        let tunnel = |(id, real): (u32, &Option<RealServer>)| {
            let template = &real.as_ref()?.template;
            Some((address(template.source()), address(template.destination()), RealId(id)))
        };
        let mut by_tunnel: Vec<_> = (0..).zip(&by_id).filter_map(tunnel).collect();
        by_tunnel.sort_unstable();
        Self { by_id: by_id.into(), by_tunnel: by_tunnel.into() }
    }
}

impl RealServers {
    /// A real server, unless its id is free.
    pub fn get(&self, id: RealId) -> Option<&RealServer> {
        self.by_id.get(id.index())?.as_ref()
    }

    /// All real servers with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (RealId, &RealServer)> {
        (0..).map(RealId).zip(&self.by_id).filter_map(|(id, real)| Some((id, real.as_ref()?)))
    }

    /// The real servers whose tunnel has these ends: one, or more while a removed one still has
    /// flows. In logarithmic time, since anybody can send messages that ask for it.
    pub fn of_tunnel(
        &self,
        source: &Address,
        destination: &Address,
    ) -> impl Iterator<Item = (RealId, &RealServer)> {
        let ends = (*source, *destination);
        let first = self.by_tunnel.partition_point(|(from, to, _)| (*from, *to) < ends);
        self.by_tunnel[first..]
            .iter()
            .take_while(move |(from, to, _)| (*from, *to) == ends)
            .filter_map(|(_, _, id)| Some((*id, self.get(*id)?)))
    }
}

/// One real server in one service: what a known flow needs to be forwarded.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Real server.
    pub real: RealId,
    /// VIP of its service.
    pub vip: VipId,
    /// Idle timeouts of its flows.
    pub timeouts: Timeouts,
    /// DF on the outer header.
    pub df: DfPolicy,
    /// Persistence of its service; `None` also once it was taken out of the config.
    pub persistence: Option<PersistencePolicy>,
}

/// The state of the world, as the core sees it.
pub struct Snapshot {
    /// Counts up with every change.
    pub generation: u64,
    /// Services and VIPs.
    pub services: ServiceTable,
    /// By [`DestinationId`]; `None` where an id is free, or its flows were cut.
    pub destinations: Box<[Option<Destination>]>,
    /// By [`RealId`].
    pub reals: RealServers,
    /// Secret of the placement.
    pub hash_key: HashKey,
    /// MAC that answers for VIPs on the TAP.
    pub tap_mac: [u8; 6],
    /// MAC of the client-facing interface; `None` where Adit does not answer for VIPs there.
    pub client_mac: Option<[u8; 6]>,
    /// Whether Adit lowers the inner TTL. In route capture the kernel has done it.
    pub decrement_hop_limit: bool,
    /// Whether the TAP is on a link with others: then frames to other hardware addresses arrive too
    /// (a bridge floods what it does not know), which are not ours.
    pub bridged: bool,
    /// Whether unknown segments under schedulers that cannot guess are answered by a reset.
    pub reset_unknown: bool,
    /// The director's own health checks.
    pub probes: Probes,
}

impl Default for Snapshot {
    /// A world without services.
    fn default() -> Self {
        Self {
            generation: 0,
            services: ServiceTable::default(),
            destinations: Box::default(),
            reals: RealServers::default(),
            hash_key: HashKey::DEFAULT,
            tap_mac: [0; 6],
            client_mac: None,
            decrement_hop_limit: false,
            bridged: false,
            reset_unknown: true,
            probes: Probes::default(),
        }
    }
}

impl Snapshot {
    /// A destination, unless it is gone.
    pub fn destination(&self, id: DestinationId) -> Option<&Destination> {
        self.destinations.get(id.index())?.as_ref()
    }

    /// A real server, unless it is gone.
    pub fn real(&self, id: RealId) -> Option<&RealServer> {
        self.reals.get(id)
    }
}
