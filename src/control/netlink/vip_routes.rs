//! The routes that bring a VIP's packets to the TAP, and those behind them.
//!
//! Each VIP, or prefix of them, has two: a route to the TAP, and a blackhole route with the worst metric. The
//! first vanishes with the TAP, at whatever moment the director dies; then the second keeps the
//! host from sending the VIP's packets back to the router they came from, which would return
//! them, in circles.
//!
//! Where routes announce VIPs (`announce = "route"`), the first is there only while the VIP can
//! serve, for a routing daemon to export. A third one then leads to the TAP as long as there is one,
//! so that what still comes for a VIP that was withdrawn a moment ago is forwarded: nearly the worst,
//! so that a route which a daemon has learnt wins, or, where real servers are checked, better than
//! those (see [`Reserve`]).
//!
//! A clean stop removes all. After `kill -9` the blackhole routes stay, and the next start takes
//! them over, or removes those of VIPs that are no longer configured. Routes of others are never
//! touched: ours carry a protocol number of their own.

use super::routes::{family, ip, route_address};
use super::{Netlink, NetlinkError};
use crate::dataplane::vip_prefix::VipPrefix;
use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use std::fmt;

/// `rtm_protocol` of Adit's routes: above 128 the numbers are free for anybody
/// (`linux/rtnetlink.h`), and this one is in nobody's `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 173;

/// Metric of the route to the TAP. IPv6 counts 0 as "not given" (and takes 1024), IPv4 as the
/// best.
pub const TAP_METRIC: u32 = 1;
/// Metric of [`Reserve::BeforeOthers`]: the next one, which nobody exports.
pub const CHECKED_RESERVE_METRIC: u32 = TAP_METRIC + 1;
/// Metric of [`Reserve::BehindOthers`]: worse than those of routing daemons, better than nothing. (FRR
/// reads the upper 8 bits as a distance, which is the worst then.)
const RESERVE_METRIC: u32 = u32::MAX - 1;
/// The worst metric there is.
const BLACKHOLE_METRIC: u32 = u32::MAX;

/// A route of ours, as found in the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VipRoute {
    /// The VIP or prefix it is for.
    pub vip: VipPrefix,
    /// The TAP it leads to; `None` for the blackhole behind.
    pub tap: Option<u32>,
    /// Which one it is of those that are not announced; `None` for the one that is, and the blackhole.
    pub reserve: Option<Reserve>,
}

/// Which way goes first while a VIP is withdrawn: the one to the TAP, or one that a routing daemon
/// has learnt from another director.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reserve {
    /// The TAP's. For VIPs whose real servers are checked: checks of this host would otherwise be
    /// answered by the other director's real servers, and bring a VIP back that cannot serve here.
    BeforeOthers,
    /// The learnt one.
    BehindOthers,
}

/// How a VIP is led to the TAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leading {
    /// Before all other ways; routes do not announce it.
    First,
    /// Before all other ways, which a routing daemon exports, and in reserve.
    Announced(Reserve),
    /// In reserve alone; a routing daemon exports nothing.
    Withdrawn(Reserve),
}

impl fmt::Display for VipRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tap {
            Some(_) if self.reserve.is_some() => write!(f, "the route of {} in reserve", self.vip),
            Some(_) => write!(f, "the route of {} to the TAP", self.vip),
            None => write!(f, "the blackhole route of {}", self.vip),
        }
    }
}

impl VipRoute {
    /// Both routes of a VIP, in the order in which they are made: first the one that is safe
    /// alone.
    #[must_use]
    pub fn pair(vip: VipPrefix, tap: u32) -> [VipRoute; 2] {
        [None, Some(tap)].map(|tap| VipRoute { vip, tap, reserve: None })
    }

    /// All routes of a VIP that is led so, in the order in which they are made.
    pub fn all(vip: VipPrefix, tap: u32, leading: Leading) -> impl Iterator<Item = VipRoute> {
        let [behind, first] = Self::pair(vip, tap);
        let (reserve, first) = match leading {
            Leading::First => (None, Some(first)),
            Leading::Announced(reserve) => (Some(reserve), Some(first)),
            Leading::Withdrawn(reserve) => (Some(reserve), None),
        };
        let reserve =
            reserve.map(|reserve| VipRoute { vip, tap: Some(tap), reserve: Some(reserve) });
        [Some(behind), reserve, first].into_iter().flatten()
    }

    fn metric(self) -> u32 {
        match (self.tap, self.reserve) {
            (Some(_), None) => TAP_METRIC,
            (Some(_), Some(Reserve::BeforeOthers)) => CHECKED_RESERVE_METRIC,
            (Some(_), Some(Reserve::BehindOthers)) => RESERVE_METRIC,
            (None, _) => BLACKHOLE_METRIC,
        }
    }

    fn message(self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(self.vip.address()),
            destination_prefix_length: self.vip.length(),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Other(ROUTE_PROTOCOL),
            scope: if self.tap.is_some() && self.vip.is_ipv4() {
                RouteScope::Link
            } else {
                RouteScope::Universe
            },
            kind: if self.tap.is_some() { RouteType::Unicast } else { RouteType::BlackHole },
            ..RouteHeader::default()
        };
        message.attributes.push(RouteAttribute::Destination(route_address(self.vip.address())));
        message.attributes.push(RouteAttribute::Priority(self.metric()));
        if let Some(tap) = self.tap {
            message.attributes.push(RouteAttribute::Oif(tap));
        }
        message
    }
}

impl Netlink {
    /// Makes the host's routes those of `vips` to `tap`: adds what is missing and removes what is
    /// left of VIPs that are gone. Doing it twice is the same as once.
    ///
    /// # Errors
    /// When the kernel refuses a route, or one of somebody else is in its place: the first of those,
    /// after everything else was done.
    pub async fn set_vip_routes(
        &self,
        vips: &[(VipPrefix, Leading)],
        tap: u32,
    ) -> Result<(), NetlinkError> {
        let present = self.vip_routes().await?;
        let wanted = wanted(vips, tap);
        let mut done = Ok(());
        for route in wanted.iter().filter(|route| !present.contains(route)) {
            done = done.and(self.add_vip_route(*route, &present).await);
        }
        for route in stale(&present, &wanted, tap) {
            done = done.and(self.remove_vip_route(route).await);
        }
        done
    }

    /// Routes of `vips` to `tap`, and those behind them, that are not there; and those that are and
    /// should not be, since the VIP is withdrawn.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn astray_vip_routes(
        &self,
        vips: &[(VipPrefix, Leading)],
        tap: u32,
    ) -> Result<(Vec<VipRoute>, Vec<VipRoute>), NetlinkError> {
        let present = self.vip_routes().await?;
        let mut wanted = wanted(vips, tap);
        let by_routes: Vec<VipPrefix> =
            vips.iter().filter(|(_, how)| *how != Leading::First).map(|(vip, _)| *vip).collect();
        let withdrawn = |route: &VipRoute| {
            route.tap == Some(tap) && !wanted.contains(route) && by_routes.contains(&route.vip)
        };
        let unwanted = present.iter().filter(|route| withdrawn(route)).copied().collect();
        wanted.retain(|route| !present.contains(route));
        Ok((wanted, unwanted))
    }

    /// Removes the routes of `vips`, first those to the TAP. The blackhole route behind another
    /// director's stays.
    ///
    /// # Errors
    /// When the kernel refuses; routes that are gone already are no error.
    pub async fn remove_vip_routes(
        &self,
        vips: &[VipPrefix],
        tap: u32,
    ) -> Result<(), NetlinkError> {
        let mut ours = stale(&self.vip_routes().await?, &[], tap);
        ours.retain(|route| vips.contains(&route.vip));
        ours.sort_by_key(|route| (route.tap.is_none(), route.reserve.is_some()));
        for route in ours {
            self.remove_vip_route(route).await?;
        }
        Ok(())
    }

    /// All routes of ours in the main table.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn vip_routes(&self) -> Result<Vec<VipRoute>, NetlinkError> {
        self.main_table(Some(RouteProtocol::Other(ROUTE_PROTOCOL)), ours).await
    }

    /// Addresses and prefixes for which somebody else has put a route into the main table, with
    /// `worst` as its metric or a better one.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn foreign_routes(&self, worst: u32) -> Result<Vec<VipPrefix>, NetlinkError> {
        let foreign = |message: &RouteMessage| {
            let protocol = message.header.protocol;
            // The kernel's own are those of addresses, which are looked at elsewhere.
            let not_theirs = [RouteProtocol::Other(ROUTE_PROTOCOL), RouteProtocol::Kernel];
            let counts = !not_theirs.contains(&protocol) && metric(message) <= worst;
            destination(message).filter(|_| counts)
        };
        self.main_table(None, foreign).await
    }

    /// What `choose` finds in the routes of the main table: all, or those of one origin.
    async fn main_table<T>(
        &self,
        origin: Option<RouteProtocol>,
        choose: impl Fn(&RouteMessage) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.table = RouteHeader::RT_TABLE_MAIN;
            message.header.protocol = origin.unwrap_or(RouteProtocol::Unspec);
            let mut routes = self.chosen.route().get(message).execute();
            loop {
                match routes.try_next().await {
                    Ok(Some(route)) => {
                        let header = &route.header;
                        if header.table == RouteHeader::RT_TABLE_MAIN
                            && origin.is_none_or(|origin| header.protocol == origin)
                        {
                            found.extend(choose(&route));
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        let error = NetlinkError::request("cannot list routes", error);
                        // In a network that never had a route, there is no such table yet.
                        if error.errno() == Some(libc::ENOENT) {
                            break;
                        }
                        return Err(error);
                    }
                }
            }
        }
        Ok(found)
    }

    async fn add_vip_route(
        &self,
        route: VipRoute,
        present: &[VipRoute],
    ) -> Result<(), NetlinkError> {
        let VipRoute { vip, tap, .. } = route;
        self.handle.route().add(route.message()).execute().await.map_err(|error| {
            let error = NetlinkError::request(format!("cannot add a route for {vip}"), error);
            if error.errno() == Some(libc::EEXIST) {
                let metric = route.metric();
                let other = |r: &VipRoute| r.vip == vip && r.tap.is_some() && r.tap != tap;
                let what = if present.iter().any(other) {
                    format!(
                        "another director on this host has {vip} on its own TAP (ip route show \
                         {vip}); stop that one, or configure other VIPs"
                    )
                } else {
                    format!(
                        "there is a route for {vip} with metric {metric} already, which Adit did \
                         not make; remove it (ip route show {vip}), or use capture = \"manual\""
                    )
                };
                return NetlinkError::new(what, std::io::Error::from_raw_os_error(libc::EEXIST));
            }
            error
        })
    }

    async fn remove_vip_route(&self, route: VipRoute) -> Result<(), NetlinkError> {
        match self.handle.route().del(route.message()).execute().await {
            Ok(()) => Ok(()),
            Err(error) => {
                let what = format!("cannot remove the route for {}", route.vip);
                let error = NetlinkError::request(what, error);
                // Gone already, alone or with the TAP.
                match error.errno() {
                    Some(libc::ESRCH | libc::ENODEV | libc::ENOENT) => Ok(()),
                    _ => Err(error),
                }
            }
        }
    }
}

/// All routes of VIPs that are led so.
fn wanted(vips: &[(VipPrefix, Leading)], tap: u32) -> Vec<VipRoute> {
    vips.iter().flat_map(|(vip, leading)| VipRoute::all(*vip, tap, *leading)).collect()
}

/// What is left over: our TAP's routes that nobody wants, and blackhole routes of VIPs that are
/// neither ours nor (a second director on this host) somebody's with a TAP.
fn stale(present: &[VipRoute], wanted: &[VipRoute], tap: u32) -> Vec<VipRoute> {
    present
        .iter()
        .filter(|route| !wanted.contains(route))
        .filter(|route| match route.tap {
            Some(index) => index == tap,
            None => !present.iter().any(|r| r.vip == route.vip && r.tap.is_some_and(|t| t != tap)),
        })
        .copied()
        .collect()
}

/// A route of Adit's protocol.
fn ours(message: &RouteMessage) -> Option<VipRoute> {
    let oif = message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Oif(index) = attribute { Some(*index) } else { None }
    });
    // IPv6 shows blackhole routes with the loopback device.
    let tap = if message.header.kind == RouteType::BlackHole { None } else { oif };
    let reserve = tap.and_then(|_| match metric(message) {
        CHECKED_RESERVE_METRIC => Some(Reserve::BeforeOthers),
        RESERVE_METRIC => Some(Reserve::BehindOthers),
        _ => None,
    });
    Some(VipRoute { vip: destination(message)?, tap, reserve })
}

/// The metric of a route; IPv4 does not show the best one.
fn metric(message: &RouteMessage) -> u32 {
    let metric = message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Priority(metric) = attribute { Some(*metric) } else { None }
    });
    metric.unwrap_or(0)
}

/// What a route leads to; `None` for a default route, which names no destination.
fn destination(message: &RouteMessage) -> Option<VipPrefix> {
    let destination = message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Destination(address) = attribute { ip(address) } else { None }
    })?;
    Some(VipPrefix::holding(destination, message.header.destination_prefix_length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_ours_and_unwanted_is_stale() {
        let vip = |last: u8| VipPrefix::host(std::net::IpAddr::from([192, 0, 2, last]));
        let wanted = VipRoute::pair(vip(1), 7);
        let leftover = VipRoute { vip: vip(2), tap: None, reserve: None };
        let old = VipRoute { vip: vip(3), tap: Some(7), reserve: None };
        let other_director = VipRoute::pair(vip(4), 9);
        let mut present = vec![wanted[0], wanted[1], leftover, old];
        present.extend(other_director);
        assert_eq!(stale(&present, &wanted, 7), [leftover, old]);
    }
}
