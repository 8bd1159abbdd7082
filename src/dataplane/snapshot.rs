//! What the core is told by control: one immutable snapshot, looked at once per batch.

use adit_tunnel::{Encapsulation, OuterTemplate};

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
    /// Unwrapped onto the real server's own Ethernet segment (LVS-DR): the frame is addressed to it,
    /// the packet in it to the VIP.
    Segment {
        /// Egress path of the interface.
        egress: EgressId,
        /// Destination MAC, source MAC; the ethertype is the packet's.
        macs: [u8; 12],
    },
    /// No way now.
    None,
}

/// A real server and the way to it.
#[derive(Clone, Debug)]
pub struct RealServer {
    /// Outer headers towards it.
    pub outers: Outers,
    /// Egress.
    pub link: Link,
    /// MTU of the route's first hop: the path MTU's upper bound, bytes of outer packet.
    pub link_mtu: u16,
    /// Cookie secrets of the present and the previous epoch.
    pub cookie_secrets: [u16; 2],
}

/// The outer headers towards a real server: one for each source address of the pool, none where
/// packets go unwrapped. They differ in nothing else.
#[derive(Clone, Debug, Default)]
pub struct Outers {
    /// Apart from the others, so that the usual case of one has it at hand.
    first: Option<OuterTemplate>,
    others: Box<[OuterTemplate]>,
}

impl From<OuterTemplate> for Outers {
    fn from(template: OuterTemplate) -> Self {
        Self { first: Some(template), others: Box::default() }
    }
}

impl FromIterator<OuterTemplate> for Outers {
    fn from_iter<I: IntoIterator<Item = OuterTemplate>>(templates: I) -> Self {
        let mut templates = templates.into_iter();
        Self { first: templates.next(), others: templates.collect() }
    }
}

impl Outers {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &OuterTemplate> {
        self.first.iter().chain(&self.others)
    }

    /// Bytes that any of them adds to a packet; 0 where there are none.
    #[inline]
    pub fn overhead(&self) -> usize {
        self.first.as_ref().map_or(0, OuterTemplate::overhead)
    }

    /// How packets are carried; `None` where they go unwrapped.
    pub fn encapsulation(&self) -> Option<Encapsulation> {
        Some(self.first.as_ref()?.encapsulation())
    }

    /// The one for a flow, and the flow's [number](super::spread). That is asked for only where
    /// something depends on it, and is 0 elsewhere.
    #[inline]
    pub fn of_flow(&self, spread: impl FnOnce() -> u32) -> Option<(&OuterTemplate, u32)> {
        let first = self.first.as_ref()?;
        if self.others.is_empty() && !matches!(first.encapsulation(), Encapsulation::Gue { .. }) {
            return Some((first, 0));
        }
        let spread = spread();
        let count = self.others.len() as u64 + 1;
        // By its upper bits, so that GUE's source port, the lower ones, varies within each source.
        let place = usize::try_from((u64::from(spread) * count) >> 32).unwrap_or(0);
        let chosen = place.checked_sub(1).and_then(|place| self.others.get(place));
        Some((chosen.unwrap_or(first), spread))
    }
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
        let tunnels = |(id, real): (u32, &Option<RealServer>)| -> Vec<_> {
            let outers = real.iter().flat_map(|real| real.outers.iter());
            outers.map(|o| (address(o.source()), address(o.destination()), RealId(id))).collect()
        };
        let mut by_tunnel: Vec<_> = (0..).zip(&by_id).flat_map(tunnels).collect();
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
    /// flows, or where one address is reached by several kinds. In logarithmic time, since anybody can send messages that ask for it.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn outers(sources: &[u8], kind: Encapsulation) -> Outers {
        let to = IpAddr::from([10, 20, 0, 11]);
        let from = |last: &u8| IpAddr::from([10, 0, 0, *last]);
        sources.iter().map(|s| OuterTemplate::with(kind, from(s), to, 64).unwrap()).collect()
    }

    #[test]
    fn each_source_of_a_pool_has_its_share_and_a_flow_has_one() {
        let pool = outers(&[5, 6, 7], Encapsulation::Ipip);
        let source = |n: u32| pool.of_flow(|| n).unwrap().0.source();
        assert_eq!(source(0), IpAddr::from([10, 0, 0, 5]));
        assert_eq!(source(u32::MAX), IpAddr::from([10, 0, 0, 7]));
        let all = (0..300).map(|n| source(u32::MAX / 300 * n));
        for last in [5, 6, 7] {
            let share = all.clone().filter(|s| *s == IpAddr::from([10, 0, 0, last])).count();
            assert!((99..=101).contains(&share), "{share} of 300 from the source .{last}");
        }
    }

    #[test]
    fn a_flows_number_is_asked_for_only_where_it_matters() {
        let unasked = || panic!("one source, no port");
        let single = outers(&[5], Encapsulation::Gre { checksum: true });
        assert_eq!(single.of_flow(unasked).unwrap().1, 0);
        assert!(Outers::default().of_flow(unasked).is_none());
        let gue = outers(&[5], Encapsulation::Gue { port: 6080, checksum: false });
        assert_eq!(gue.of_flow(|| 77).unwrap().1, 77);
    }

    #[test]
    fn every_source_of_a_pool_is_known_to_errors() {
        let real = |outers| {
            let link = Link::None;
            Some(RealServer { outers, link, link_mtu: 1500, cookie_secrets: [1, 2] })
        };
        let gre = Encapsulation::Gre { checksum: false };
        let reals = RealServers::from(vec![
            real(outers(&[5, 6], Encapsulation::Ipip)),
            real(Outers::default()),
            real(outers(&[5], gre)),
        ]);
        let of = |last: u8| {
            let ends = [[10, 0, 0, last], [10, 20, 0, 11]].map(|a| address(IpAddr::from(a)));
            reals.of_tunnel(&ends[0], &ends[1]).map(|(id, _)| id).collect::<Vec<_>>()
        };
        assert_eq!(of(5), [RealId(0), RealId(2)]);
        assert_eq!(of(6), [RealId(0)]);
        assert_eq!(of(7), []);
    }
}
