//! How each real server is reached: frames written by Adit itself, or packets through the
//! kernel's routing.
//!
//! Direct egress is faster and goes around everything the kernel does on the way out. It is taken
//! only where the kernel would do nothing but add an Ethernet header: on an Ethernet device, with
//! a resolved next hop, with no IPsec policy that might concern the packets and no encapsulation
//! on the route. In any doubt the kernel sends.

use super::links::Link;
use super::neighbours::{Neighbour, NeighbourKey};
use super::routes::{Route, RouteKind};
use super::xfrm::XfrmPolicies;
use super::{Netlink, NetlinkError};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Outer protocol numbers of tunnel packets: IPv4 and IPv6 inside.
const TUNNEL_PROTOCOLS: [u8; 2] = [4, 41];
/// What is assumed where the device is unknown: the least every IPv6 path carries.
const LEAST_MTU: u32 = 1280;

/// How one real server is reached, as of the last look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RealPath {
    /// The real server.
    pub address: IpAddr,
    /// Outer source address; `None` where there is neither a configured one nor a route.
    pub source: Option<IpAddr>,
    /// MTU of the way to it as far as this host knows, in bytes of the outer packet.
    pub mtu: u32,
    /// Name of the device packets leave by.
    pub interface: Option<String>,
    /// The router, or the real server itself where it is on the link.
    pub next_hop: Option<IpAddr>,
    /// Who sends.
    pub egress: Egress,
}

/// Who sends, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Egress {
    /// Adit writes the frame.
    Direct(DirectPath),
    /// The kernel routes the packet.
    Kernel(KernelReason),
}

/// What Adit needs to write a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DirectPath {
    /// Number of the device.
    pub ifindex: u32,
    /// Its own address.
    pub source_mac: [u8; 6],
    /// The next hop's address.
    pub next_hop_mac: [u8; 6],
}

/// Why the kernel sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelReason {
    /// There is no route now.
    NoRoute,
    /// The route refuses packets (blackhole, unreachable, prohibit).
    Refused,
    /// The address is this host's own.
    Local,
    /// The route is of a kind only the kernel understands.
    SpecialRoute,
    /// The device has no Ethernet header to write.
    NotEthernet,
    /// The device is down.
    LinkDown,
    /// An IPsec policy might concern the packets.
    Ipsec,
    /// IPsec policies could not be read, so there might be one.
    IpsecUnknown,
    /// The next hop has not answered yet.
    Unresolved,
}

impl fmt::Display for KernelReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KernelReason::NoRoute => "no route",
            KernelReason::Refused => "the route refuses packets",
            KernelReason::Local => "the address is this host's own",
            KernelReason::SpecialRoute => "the route encapsulates or is special",
            KernelReason::NotEthernet => "the device is not Ethernet",
            KernelReason::LinkDown => "the device is down",
            KernelReason::Ipsec => "an IPsec policy may concern it",
            KernelReason::IpsecUnknown => "IPsec policies cannot be read",
            KernelReason::Unresolved => "the next hop has not answered yet",
        })
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Egress::Direct(_) => f.write_str("direct"),
            Egress::Kernel(reason) => write!(f, "kernel ({reason})"),
        }
    }
}

/// Outer source addresses that the configuration fixes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FixedSources {
    /// Towards IPv4 real servers.
    pub v4: Option<Ipv4Addr>,
    /// Towards IPv6 real servers.
    pub v6: Option<Ipv6Addr>,
}

impl FixedSources {
    /// The one for a destination.
    #[must_use]
    pub fn towards(&self, destination: IpAddr) -> Option<IpAddr> {
        match destination {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }
}

/// A look at the host: the way to every real server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// In the order of the addresses asked for.
    pub paths: Vec<RealPath>,
    /// Next hops on Ethernet that must stay resolved; permanent entries need no care.
    pub next_hops: Vec<NeighbourKey>,
}

impl Netlink {
    /// Looks up the way to every real server.
    ///
    /// # Errors
    /// When the kernel does not answer. Policies that cannot be read are no error: then the kernel
    /// sends.
    pub async fn survey(
        &self,
        reals: &[IpAddr],
        sources: FixedSources,
    ) -> Result<Survey, NetlinkError> {
        let neighbours = self.neighbours().await?;
        let policies = XfrmPolicies::read().await.ok();
        let mut links: HashMap<u32, Option<Link>> = HashMap::new();
        let mut survey = Survey::default();
        for &real in reals {
            let fixed = sources.towards(real);
            let route = self.route_to(real, fixed).await?;
            let link = match route.interface {
                Some(index) => match links.get(&index) {
                    Some(link) => link.clone(),
                    None => {
                        let link = self.link_by_index(index).await?;
                        links.insert(index, link.clone());
                        link
                    }
                },
                None => None,
            };
            let next_hop = route.interface.map(|index| (index, route.gateway.unwrap_or(real)));
            let neighbour = next_hop.and_then(|key| neighbours.get(&key)).copied();
            let source = fixed.or(route.source);
            let egress = decide(&route, link.as_ref(), neighbour, policies.as_ref(), source, real);
            let wants_neighbour =
                matches!(egress, Egress::Direct(_) | Egress::Kernel(KernelReason::Unresolved));
            if let Some(key) = next_hop
                && wants_neighbour
                && !neighbour.is_some_and(|n| n.permanent)
                && !survey.next_hops.contains(&key)
            {
                survey.next_hops.push(key);
            }
            survey.paths.push(RealPath {
                address: real,
                source,
                mtu: path_mtu(&route, link.as_ref()),
                interface: link.map(|l| l.name),
                next_hop: next_hop.map(|(_, address)| address),
                egress,
            });
        }
        Ok(survey)
    }
}

fn path_mtu(route: &Route, link: Option<&Link>) -> u32 {
    let link = link.map_or(LEAST_MTU, |l| l.mtu);
    route.mtu.filter(|mtu| *mtu > 0).map_or(link, |mtu| mtu.min(link))
}

/// Who sends to a real server: pure, so that every reason can be tested.
fn decide(
    route: &Route,
    link: Option<&Link>,
    neighbour: Option<Neighbour>,
    policies: Option<&XfrmPolicies>,
    source: Option<IpAddr>,
    real: IpAddr,
) -> Egress {
    let no_way = match route.kind {
        RouteKind::Missing => Some(KernelReason::NoRoute),
        RouteKind::Refused => Some(KernelReason::Refused),
        RouteKind::Local => Some(KernelReason::Local),
        RouteKind::Other | RouteKind::Unicast => None,
    };
    if let Some(reason) = no_way {
        return Egress::Kernel(reason);
    }
    let Some(link) = link else { return Egress::Kernel(KernelReason::NoRoute) };
    // Before all other reasons for the kernel: only the paths made for policies are seen by them,
    // whatever the device is.
    let Some(policies) = policies else { return Egress::Kernel(KernelReason::IpsecUnknown) };
    if policies.concern(source, real, &TUNNEL_PROTOCOLS, link.index) {
        return Egress::Kernel(KernelReason::Ipsec);
    }
    if route.kind == RouteKind::Other || route.encapsulates {
        return Egress::Kernel(KernelReason::SpecialRoute);
    }
    if !link.up {
        return Egress::Kernel(KernelReason::LinkDown);
    }
    let (true, Some(source_mac)) = (link.ethernet, link.mac) else {
        return Egress::Kernel(KernelReason::NotEthernet);
    };
    match neighbour.and_then(|n| n.mac) {
        Some(next_hop_mac) => {
            Egress::Direct(DirectPath { ifindex: link.index, source_mac, next_hop_mac })
        }
        None => Egress::Kernel(KernelReason::Unresolved),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ethernet() -> Link {
        let mac = Some([2, 0, 0, 0, 0, 1]);
        Link {
            index: 2,
            name: "eth0".into(),
            mtu: 1500,
            ethernet: true,
            mac,
            up: true,
            is_bridge: false,
            controller: None,
            in_bridge: false,
            tx_dropped: 0,
        }
    }

    fn route() -> Route {
        Route {
            kind: RouteKind::Unicast,
            interface: Some(2),
            gateway: None,
            source: None,
            mtu: None,
            encapsulates: false,
        }
    }

    #[test]
    fn direct_only_where_nothing_is_in_the_way() {
        let real: IpAddr = "10.20.0.11".parse().unwrap();
        let known = Neighbour { mac: Some([2, 0, 0, 0, 0, 9]), permanent: false, managed: false };
        let unknown = Neighbour { mac: None, ..known };
        let none = XfrmPolicies::default();
        let look = |route: &Route, link: &Link, neighbour, policies: Option<&XfrmPolicies>| {
            decide(route, Some(link), neighbour, policies, None, real)
        };
        let direct = DirectPath {
            ifindex: 2,
            source_mac: [2, 0, 0, 0, 0, 1],
            next_hop_mac: [2, 0, 0, 0, 0, 9],
        };
        assert_eq!(look(&route(), &ethernet(), Some(known), Some(&none)), Egress::Direct(direct));
        let tun = Link { ethernet: false, mac: None, ..ethernet() };
        let down = Link { up: false, ..ethernet() };
        let encap = Route { encapsulates: true, ..route() };
        let cases = [
            (route(), tun.clone(), Some(known), Some(&none), KernelReason::NotEthernet),
            (route(), down.clone(), Some(known), Some(&none), KernelReason::LinkDown),
            (encap.clone(), ethernet(), Some(known), Some(&none), KernelReason::SpecialRoute),
            (route(), ethernet(), Some(unknown), Some(&none), KernelReason::Unresolved),
            (route(), ethernet(), None, Some(&none), KernelReason::Unresolved),
            (route(), ethernet(), Some(known), None, KernelReason::IpsecUnknown),
            // Only the paths for policies are seen by them, whatever else is the matter.
            (route(), tun.clone(), Some(known), None, KernelReason::IpsecUnknown),
            (route(), down.clone(), Some(known), None, KernelReason::IpsecUnknown),
            (encap.clone(), ethernet(), None, None, KernelReason::IpsecUnknown),
        ];
        for (route, link, neighbour, policies, reason) in cases {
            assert_eq!(look(&route, &link, neighbour, policies), Egress::Kernel(reason));
        }
        for (kind, reason) in [
            (RouteKind::Missing, KernelReason::NoRoute),
            (RouteKind::Refused, KernelReason::Refused),
            (RouteKind::Local, KernelReason::Local),
            (RouteKind::Other, KernelReason::SpecialRoute),
        ] {
            let route = Route { kind, ..route() };
            let egress = look(&route, &ethernet(), Some(known), Some(&none));
            assert_eq!(egress, Egress::Kernel(reason));
        }
    }

    #[test]
    fn the_smaller_mtu_of_route_and_device_holds() {
        let narrow = Route { mtu: Some(1400), ..route() };
        let wide = Route { mtu: Some(9000), ..route() };
        assert_eq!(path_mtu(&narrow, Some(&ethernet())), 1400);
        assert_eq!(path_mtu(&wide, Some(&ethernet())), 1500);
        assert_eq!(path_mtu(&route(), Some(&ethernet())), 1500);
        assert_eq!(path_mtu(&route(), None), LEAST_MTU);
    }
}
