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
use crate::control::config::RealTunnel;
use adit_tunnel::{PROTOCOL_GRE, PROTOCOL_IPV4, PROTOCOL_IPV6, PROTOCOL_UDP};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

/// What is assumed where the device is unknown: the least every IPv6 path carries.
const LEAST_MTU: u32 = 1280;

/// How one real server is reached, as of the last look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RealPath {
    /// The real server.
    pub address: IpAddr,
    /// How packets to it are carried.
    pub tunnel: RealTunnel,
    /// Outer source addresses: those that are configured, else the route's; none where there is
    /// neither.
    pub sources: Vec<IpAddr>,
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
    /// Nobody: the kernel would not send such packets as they must be.
    None(KernelReason),
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

/// Why the kernel sends, or nobody does.
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
    /// The real server is behind a router, where packets to it must be wrapped.
    BehindRouter,
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
            KernelReason::BehindRouter => "the real server is not on a connected segment",
        })
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Egress::Direct(_) => f.write_str("direct"),
            Egress::Kernel(reason) => write!(f, "kernel ({reason})"),
            Egress::None(reason) => write!(f, "none ({reason})"),
        }
    }
}

/// What is to be looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Real servers, each with how packets to it are carried.
    pub reals: Vec<(IpAddr, RealTunnel)>,
    /// Outer sources that the configuration fixes, of both families.
    pub sources: Vec<IpAddr>,
    /// VIPs: what packets that are not wrapped are addressed to.
    pub vips: Vec<IpAddr>,
}

impl Wanted {
    /// Fixed outer sources towards a real server.
    fn sources_towards(&self, real: IpAddr) -> Vec<IpAddr> {
        let of_family = |source: &&IpAddr| source.is_ipv4() == real.is_ipv4();
        self.sources.iter().filter(of_family).copied().collect()
    }
}

/// A look at the host: the way to every real server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// In the order of the real servers asked for.
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
    pub async fn survey(&self, wanted: &Wanted) -> Result<Survey, NetlinkError> {
        let neighbours = self.neighbours().await?;
        let policies = XfrmPolicies::read().await.ok();
        let mut links: HashMap<u32, Option<Link>> = HashMap::new();
        let mut survey = Survey::default();
        for &(real, tunnel) in &wanted.reals {
            let mut sources = wanted.sources_towards(real);
            let route = self.route_to(real, sources.first().copied()).await?;
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
            if sources.is_empty() {
                sources.extend(route.source);
            }
            let look = Look {
                route: &route,
                link: link.as_ref(),
                neighbour,
                policies: policies.as_ref(),
                real,
                sources: &sources,
                vips: &wanted.vips,
            };
            let egress = look.decide(tunnel);
            let wants_neighbour = matches!(
                egress,
                Egress::Direct(_)
                    | Egress::Kernel(KernelReason::Unresolved)
                    | Egress::None(KernelReason::Unresolved)
            );
            if let Some(key) = next_hop
                && wants_neighbour
                && !neighbour.is_some_and(|n| n.permanent)
                && !survey.next_hops.contains(&key)
            {
                survey.next_hops.push(key);
            }
            survey.paths.push(RealPath {
                address: real,
                tunnel,
                sources,
                mtu: path_mtu(&route, link.as_ref()),
                interface: link.map(|l| l.name),
                next_hop: next_hop.map(|(_, address)| address),
                egress,
            });
        }
        Ok(survey)
    }
}

impl Netlink {
    /// Those addresses that are not this host's own.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn foreign(
        &self,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> Result<Vec<IpAddr>, NetlinkError> {
        let mut foreign = Vec::new();
        for address in addresses {
            if self.route_to(address, None).await?.kind != RouteKind::Local {
                foreign.push(address);
            }
        }
        Ok(foreign)
    }
}

fn path_mtu(route: &Route, link: Option<&Link>) -> u32 {
    let link = link.map_or(LEAST_MTU, |l| l.mtu);
    route.mtu.filter(|mtu| *mtu > 0).map_or(link, |mtu| mtu.min(link))
}

/// What was seen of the way to one real server.
struct Look<'a> {
    route: &'a Route,
    link: Option<&'a Link>,
    neighbour: Option<Neighbour>,
    policies: Option<&'a XfrmPolicies>,
    real: IpAddr,
    sources: &'a [IpAddr],
    vips: &'a [IpAddr],
}

impl Look<'_> {
    /// Who sends to a real server: pure, so that every reason can be tested.
    fn decide(&self, tunnel: RealTunnel) -> Egress {
        let way = self.way(tunnel);
        match (way, tunnel) {
            (Ok(direct), _) => Egress::Direct(direct),
            // A router of the kernel's would not send the frame to the real server.
            (Err(reason), RealTunnel::Direct) => Egress::None(reason),
            // The kernel can wrap in IP while it looks at policies, and nothing else: a socket that
            // writes GRE or UDP headers of its own goes past those that name ports or protocols.
            (
                Err(reason @ (KernelReason::Ipsec | KernelReason::IpsecUnknown)),
                RealTunnel::Gre { .. } | RealTunnel::Gue { .. },
            ) => Egress::None(reason),
            (Err(reason), RealTunnel::Ipip | RealTunnel::Gre { .. } | RealTunnel::Gue { .. }) => {
                Egress::Kernel(reason)
            }
        }
    }

    /// What a frame needs, or why Adit cannot write it.
    fn way(&self, tunnel: RealTunnel) -> Result<DirectPath, KernelReason> {
        let route = self.route;
        match route.kind {
            RouteKind::Missing => return Err(KernelReason::NoRoute),
            RouteKind::Refused => return Err(KernelReason::Refused),
            RouteKind::Local => return Err(KernelReason::Local),
            RouteKind::Other | RouteKind::Unicast => {}
        }
        let link = self.link.ok_or(KernelReason::NoRoute)?;
        // Before all other reasons for the kernel: only the paths made for policies are seen by
        // them, whatever the device is.
        let policies = self.policies.ok_or(KernelReason::IpsecUnknown)?;
        if self.is_concern_of(policies, tunnel, link.index) {
            return Err(KernelReason::Ipsec);
        }
        if route.kind == RouteKind::Other || route.encapsulates {
            return Err(KernelReason::SpecialRoute);
        }
        if tunnel == RealTunnel::Direct && route.gateway.is_some() {
            return Err(KernelReason::BehindRouter);
        }
        if !link.up {
            return Err(KernelReason::LinkDown);
        }
        let (true, Some(source_mac)) = (link.ethernet, link.mac) else {
            return Err(KernelReason::NotEthernet);
        };
        let next_hop_mac = self.neighbour.and_then(|n| n.mac).ok_or(KernelReason::Unresolved)?;
        Ok(DirectPath { ifindex: link.index, source_mac, next_hop_mac })
    }

    fn is_concern_of(&self, policies: &XfrmPolicies, tunnel: RealTunnel, interface: u32) -> bool {
        let protocols: &[u8] = match tunnel {
            RealTunnel::Ipip => &[PROTOCOL_IPV4, PROTOCOL_IPV6],
            RealTunnel::Gre { .. } => &[PROTOCOL_GRE],
            RealTunnel::Gue { .. } => &[PROTOCOL_UDP],
            // Packets of clients, of any protocol, to a VIP. One for the real server itself says
            // that this segment is not to be trusted.
            RealTunnel::Direct => {
                let mut ends = self.vips.iter().chain([&self.real]);
                return ends.any(|address| policies.concern_any(*address, interface));
            }
        };
        let concerns = |source| policies.concern(source, self.real, protocols, interface);
        if self.sources.is_empty() {
            concerns(None)
        } else {
            self.sources.iter().any(|source| concerns(Some(*source)))
        }
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

    const ON_LINK: Route = Route {
        kind: RouteKind::Unicast,
        interface: Some(2),
        gateway: None,
        source: None,
        mtu: None,
        encapsulates: false,
    };

    fn route() -> Route {
        ON_LINK
    }

    #[test]
    fn direct_only_where_nothing_is_in_the_way() {
        let real: IpAddr = "10.20.0.11".parse().unwrap();
        let known = Neighbour { mac: Some([2, 0, 0, 0, 0, 9]), permanent: false, managed: false };
        let unknown = Neighbour { mac: None, ..known };
        let none = XfrmPolicies::default();
        let look = |route: &Route, link: &Link, neighbour, policies: Option<&XfrmPolicies>| {
            let link = Some(link);
            Look { route, link, neighbour, policies, real, sources: &[], vips: &[] }
                .decide(RealTunnel::Ipip)
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
    fn direct_mode_and_other_headers_never_go_where_they_must_not() {
        let gre = RealTunnel::Gre { checksum: false };
        let gue = RealTunnel::Gue { port: 6080, checksum: false };
        let all = [RealTunnel::Ipip, gre, gue, RealTunnel::Direct];
        let known = Neighbour { mac: Some([2, 0, 0, 0, 0, 9]), permanent: false, managed: false };
        let none = XfrmPolicies::default();
        let base = || Look {
            route: &ON_LINK,
            link: None,
            neighbour: Some(known),
            policies: Some(&none),
            real: "10.20.0.11".parse().unwrap(),
            sources: &[],
            vips: &[],
        };
        let link = ethernet();
        let tun = Link { ethernet: false, mac: None, ..ethernet() };
        let decide = |look: Look<'_>| all.map(|tunnel| look.decide(tunnel));
        let seen = decide(Look { link: Some(&link), ..base() });
        assert!(seen.iter().all(|egress| matches!(egress, Egress::Direct(_))), "{seen:?}");

        // Behind a router its MAC is the router's.
        let routed = Route { gateway: "10.20.0.1".parse().ok(), ..route() };
        let [ipip, _, _, direct] = decide(Look { route: &routed, link: Some(&link), ..base() });
        assert!(matches!(ipip, Egress::Direct(_)));
        assert_eq!(direct, Egress::None(KernelReason::BehindRouter));

        use KernelReason::{IpsecUnknown, NoRoute, NotEthernet, Unresolved};
        let cases: [(Look<'_>, KernelReason, [bool; 4]); 4] = [
            (
                Look { link: Some(&link), neighbour: None, ..base() },
                Unresolved,
                [true, true, true, false],
            ),
            (base(), NoRoute, [true, true, true, false]),
            (Look { link: Some(&tun), ..base() }, NotEthernet, [true, true, true, false]),
            (
                Look { link: Some(&link), policies: None, ..base() },
                IpsecUnknown,
                [true, false, false, false],
            ),
        ];
        for (look, reason, kernel) in cases {
            let expected =
                kernel.map(|k| if k { Egress::Kernel(reason) } else { Egress::None(reason) });
            assert_eq!(decide(look), expected);
        }
    }

    /// One for each protocol: who is concerned, by kind.
    #[test]
    fn each_kind_of_tunnel_minds_the_policies_that_concern_it() {
        let gre = RealTunnel::Gre { checksum: false };
        let gue = RealTunnel::Gue { port: 6080, checksum: false };
        let all = [RealTunnel::Ipip, gre, gue, RealTunnel::Direct];
        let known = Neighbour { mac: Some([2, 0, 0, 0, 0, 9]), permanent: false, managed: false };
        let link = ethernet();
        let concerned = |destination: &str, protocol| {
            let policies = XfrmPolicies::for_tests(destination.parse().unwrap(), protocol);
            let look = Look {
                route: &ON_LINK,
                link: Some(&link),
                neighbour: Some(known),
                policies: Some(&policies),
                real: "10.20.0.11".parse().unwrap(),
                sources: &["10.0.0.5".parse().unwrap(), "10.0.0.6".parse().unwrap()],
                vips: &["198.51.100.10".parse().unwrap()],
            };
            all.map(|tunnel| !matches!(look.decide(tunnel), Egress::Direct(_)))
        };
        assert_eq!(concerned("10.20.0.11", 4), [true, false, false, true]);
        assert_eq!(concerned("10.20.0.11", 41), [true, false, false, true]);
        assert_eq!(concerned("10.20.0.11", 47), [false, true, false, true]);
        assert_eq!(concerned("10.20.0.11", 17), [false, false, true, true]);
        assert_eq!(concerned("10.20.0.11", 0), [true; 4]);
        assert_eq!(concerned("198.51.100.10", 6), [false, false, false, true]);
        assert_eq!(concerned("10.20.0.12", 0), [false; 4]);
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
