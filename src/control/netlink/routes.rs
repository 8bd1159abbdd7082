//! Which way the kernel would send a packet.

use super::{Netlink, NetlinkError};
use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use std::net::IpAddr;

/// The kernel's answer for one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What becomes of packets.
    pub kind: RouteKind,
    /// Device they leave by.
    pub interface: Option<u32>,
    /// Router they go to; `None` when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Source address the kernel would take.
    pub source: Option<IpAddr>,
    /// MTU of the route itself, from a metric or a learned path MTU; else the device's holds.
    pub mtu: Option<u32>,
    /// Whether the route adds a header of its own (MPLS, SRv6): such packets only the kernel
    /// can build.
    pub encapsulates: bool,
}

/// What becomes of packets on a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    /// They are sent on.
    Unicast,
    /// They are for this host.
    Local,
    /// They are dropped or refused: blackhole, unreachable, prohibit.
    Refused,
    /// There is no route.
    Missing,
    /// Anything else: multicast, broadcast.
    Other,
}

impl Netlink {
    /// Asks the kernel for its route to `destination`, as if from `source` where one is given.
    ///
    /// # Errors
    /// When the kernel does not answer. That there is no route is an answer.
    pub async fn route_to(
        &self,
        destination: IpAddr,
        source: Option<IpAddr>,
    ) -> Result<Route, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = full_length(destination);
        message.attributes.push(RouteAttribute::Destination(route_address(destination)));
        if let Some(source) = source {
            message.header.source_prefix_length = full_length(source);
            message.attributes.push(RouteAttribute::Source(route_address(source)));
        }
        let answer = self.handle.route().get(message).execute().try_next().await;
        let what = || format!("cannot look up the route to {destination}");
        match answer {
            Ok(Some(message)) => Ok(route(&message)),
            Ok(None) => Ok(Route::none(RouteKind::Missing)),
            Err(error) => {
                let error = NetlinkError::request(what(), error);
                // The kernel reports refusing routes as the error a sender would get.
                match error.errno() {
                    Some(libc::ENETUNREACH) => Ok(Route::none(RouteKind::Missing)),
                    Some(libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL) => {
                        Ok(Route::none(RouteKind::Refused))
                    }
                    _ => Err(error),
                }
            }
        }
    }
}

impl Route {
    fn none(kind: RouteKind) -> Self {
        Route { kind, interface: None, gateway: None, source: None, mtu: None, encapsulates: false }
    }
}

fn route(message: &RouteMessage) -> Route {
    let kind = match message.header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local => RouteKind::Local,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => RouteKind::Refused,
        RouteType::Unspec
        | RouteType::Broadcast
        | RouteType::Anycast
        | RouteType::Multicast
        | RouteType::Throw
        | RouteType::Nat
        | RouteType::ExternalResolve
        | _ => RouteKind::Other,
    };
    let mut route = Route::none(kind);
    for attribute in &message.attributes {
        if let RouteAttribute::Oif(index) = attribute {
            route.interface = Some(*index);
        } else if let RouteAttribute::Gateway(address) = attribute {
            route.gateway = ip(address);
        } else if let RouteAttribute::Via(RouteVia::Inet6(address)) = attribute {
            // An IPv4 route by an IPv6 router (RFC 8950).
            route.gateway = Some(IpAddr::V6(*address));
        } else if let RouteAttribute::PrefSource(address) = attribute {
            route.source = ip(address);
        } else if let RouteAttribute::Metrics(metrics) = attribute {
            route.mtu = metrics.iter().find_map(mtu);
        } else if let RouteAttribute::EncapType(_) = attribute {
            route.encapsulates = true;
        }
    }
    route
}

fn mtu(metric: &RouteMetric) -> Option<u32> {
    if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None }
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(v4) = address {
        Some(IpAddr::V4(*v4))
    } else if let RouteAddress::Inet6(v6) = address {
        Some(IpAddr::V6(*v6))
    } else {
        None
    }
}

pub(super) fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

pub(super) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// The prefix length that names one host.
pub(super) fn full_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}
