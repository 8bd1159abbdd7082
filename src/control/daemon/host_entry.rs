//! Leading VIPs to a running director, and no longer: routes, firewall, announcements.

use super::{Daemon, start};
use crate::control::config::{Capture, VipPrefix};
use crate::control::finding::Finding;
use crate::control::firewall::{self, FirewallError};
use crate::control::netlink::neighbours::{Neighbour, NeighbourKey};
use crate::control::netlink::vip_routes::Leading;
use crate::dataplane::neighbour::{self, Mac};
use crate::io::{EgressTarget, JoinedGroups, OpenEgress};
use std::collections::BTreeSet;
use std::net::IpAddr;

impl Daemon {
    /// Makes the host lead the VIPs here: firewall, multicast groups, routes. Doing it twice is
    /// the same as once. Stops at the first obstacle.
    pub(super) async fn enter_host(&self) -> Result<(), String> {
        self.state.borrow_mut().host_due = true;
        let vips = self.state.borrow().vips_in_force();
        self.apply_rules(&vips).await?;
        self.join_groups(&vips)?;
        self.lead(&vips).await?;
        self.host_entered(vips);
        Ok(())
    }

    /// As [`enter_host`](Self::enter_host), but goes around obstacles, and tells the first of them
    /// when the rest is done.
    pub(super) async fn enter_host_where_possible(&self) -> Result<(), String> {
        self.state.borrow_mut().host_due = true;
        let vips = self.state.borrow().vips_in_force();
        let rules = self.apply_rules(&vips).await;
        let groups = self.join_groups(&vips);
        let routes = self.lead(&vips).await;
        rules.and(groups).and(routes)?;
        self.host_entered(vips);
        Ok(())
    }

    async fn apply_rules(&self, vips: &BTreeSet<VipPrefix>) -> Result<(), String> {
        let tap = self.tap.name().to_owned();
        let interface = self.state.borrow().config.director.interface.clone();
        let vips = vips.iter().copied().collect();
        let rules = firewall::Rules { tap, interface, vips };
        let listed = match rules.apply().await {
            // Gone in this moment: the next look will find a difference.
            Ok(()) => {
                let listed = firewall::listing(self.tap.name()).await;
                listed.map(|listed| Some(listed.unwrap_or_default()))
            }
            Err(error @ FirewallError::NoTables) => {
                self.go_on_without_rules(&error);
                Ok(None)
            }
            Err(error) => Err(error),
        };
        self.state.borrow_mut().rules = listed.map_err(|error| error.to_string())?;
        Ok(())
    }

    fn join_groups(&self, vips: &BTreeSet<VipPrefix>) -> Result<(), String> {
        let mut state = self.state.borrow_mut();
        if start::answers_there(&state.config) {
            state.groups = join_groups(state.client_index, vips)?;
        }
        Ok(())
    }

    /// Brings the packets of VIPs to the TAP.
    async fn lead(&self, vips: &BTreeSet<VipPrefix>) -> Result<(), String> {
        let (capture, interface) = {
            let state = self.state.borrow();
            (state.config.director.capture, state.client_index)
        };
        let tap = self.tap.index();
        let done = match capture {
            Capture::Route => {
                let _routing = self.routing.lock().await;
                if self.stopping.get() {
                    return Ok(());
                }
                if self.is_announced_by_routes() {
                    self.state.borrow_mut().announcements.follow(vips.iter().copied());
                    self.look_at_announcements();
                }
                self.netlink.set_vip_routes(&self.leading(vips), tap).await
            }
            Capture::Bridge => self.netlink.set_bridge_port(tap, interface).await,
            Capture::Manual => Ok(()),
        };
        done.map_err(|error| error.to_string())
    }

    /// How each of `vips` is to be led to the TAP; where routes announce them, as was decided last,
    /// and of which VIPs.
    pub(super) fn leading(&self, vips: &BTreeSet<VipPrefix>) -> Vec<(VipPrefix, Leading)> {
        if self.is_announced_by_routes() {
            self.leading_by_routes()
        } else {
            vips.iter().map(|vip| (*vip, Leading::First)).collect()
        }
    }

    fn host_entered(&self, vips: BTreeSet<VipPrefix>) {
        let mut state = self.state.borrow_mut();
        let mac = match state.config.director.capture {
            Capture::Bridge => Some(self.tap.peer_mac()),
            Capture::Route | Capture::Manual => state.client_mac,
        };
        if let Some(mac) = mac {
            announce_vips(state.client_index, mac, &new_addresses(&vips, &state.vips));
        }
        state.vips = vips;
        state.host_due = false;
    }

    /// A kernel that cannot have the rules may do without: they are about connection tracking.
    fn go_on_without_rules(&self, error: &FirewallError) {
        let help = "where a firewall tracks connections, it drops one-sided TCP as invalid; keep \
                    VIPs from being tracked by rules of your own (raw table, NOTRACK)";
        let finding = Finding::warning(error.to_string(), help);
        let mut state = self.state.borrow_mut();
        if !state.findings.contains(&finding) {
            tracing::warn!(help, "{error}");
            state.findings.push(finding);
        }
    }

    /// Asks the kernel to keep the next hops in use resolved, and lets go of all others.
    pub(super) async fn keep_next_hops(&self) {
        let next_hops = self.state.borrow().survey.next_hops.clone();
        self.keep_neighbours(&next_hops).await;
    }

    /// The same with the next hops `wanted`.
    async fn keep_neighbours(&self, wanted: &[NeighbourKey]) {
        let present = match self.netlink.neighbours().await {
            Ok(present) => present,
            Err(error) => {
                tracing::warn!(%error, "next hops are left to themselves until the next look");
                return;
            }
        };
        let is =
            |key: &NeighbourKey, what: fn(&Neighbour) -> bool| present.get(key).is_some_and(what);
        // An entry that is not managed was made anew since (a flap, a flush), or the kernel is too
        // old to manage any and has to be asked each time.
        for key in wanted.iter().filter(|key| !is(key, |n| n.permanent)) {
            self.state.borrow_mut().kept.insert(*key);
            if !is(key, |n| n.managed)
                && let Err(error) = self.netlink.keep_neighbour(*key).await
            {
                tracing::warn!(%error, "direct egress may fall back to the kernel");
            }
        }
        let mut leave: Vec<_> = self.state.borrow().kept.iter().copied().collect();
        leave.retain(|key| !wanted.contains(key));
        for key in leave {
            // One that has become permanent meanwhile is an administrator's.
            if !is(&key, |n| n.permanent)
                && let Err(error) = self.netlink.release_neighbour(key).await
            {
                tracing::warn!(%error, "a neighbour entry stays behind");
            }
            self.state.borrow_mut().kept.remove(&key);
        }
    }

    /// Takes routes and neighbour care back, and the firewall's rules.
    pub(super) async fn leave_host(&self) {
        let (vips, capture) = {
            let state = self.state.borrow();
            let vips: Vec<VipPrefix> = state.vips_in_force().union(&state.vips).copied().collect();
            (vips, state.config.director.capture)
        };
        if capture == Capture::Route {
            let _routing = self.routing.lock().await;
            if let Err(error) = self.netlink.remove_vip_routes(&vips, self.tap.index()).await {
                tracing::error!(%error, "routes of VIPs stay behind");
            }
        }
        self.keep_neighbours(&[]).await;
        self.state.borrow_mut().groups = None;
        match firewall::remove(self.tap.name()).await {
            // Where there can be none, none stay.
            Ok(()) | Err(FirewallError::NoTables) => {}
            Err(error) => tracing::warn!(%error, "firewall rules stay behind"),
        }
    }
}

/// Addresses that are VIPs now and were none before.
fn new_addresses(now: &BTreeSet<VipPrefix>, before: &BTreeSet<VipPrefix>) -> BTreeSet<IpAddr> {
    let addresses = |vips: &BTreeSet<VipPrefix>| -> BTreeSet<IpAddr> {
        vips.iter().flat_map(VipPrefix::addresses).collect()
    };
    &addresses(now) - &addresses(before)
}

/// Tells the neighbours where new VIPs are (RFC 5227 §3, RFC 4861 §7.2.6): those that remember
/// another host would go on sending there. It is news, not needed by those that ask.
fn announce_vips(interface: u32, mac: Mac, vips: &BTreeSet<IpAddr>) {
    let path = match OpenEgress::open(&EgressTarget::Direct { interface }) {
        Ok(path) => path,
        Err(error) => {
            tracing::warn!(%error, "VIPs are not announced");
            return;
        }
    };
    for vip in vips {
        let sent = match vip {
            IpAddr::V4(vip) => path.send(&neighbour::gratuitous_arp(mac, *vip)),
            IpAddr::V6(vip) => path.send(&neighbour::unsolicited_advertisement(mac, *vip)),
        };
        if let Err(errno) = sent {
            tracing::warn!(%vip, %errno, "not announced");
        }
    }
}

/// Joins the solicited-node groups of IPv6 VIPs, so that solicitations for them arrive.
fn join_groups(interface: u32, vips: &BTreeSet<VipPrefix>) -> Result<Option<JoinedGroups>, String> {
    let v6: Vec<_> = vips
        .iter()
        .flat_map(VipPrefix::addresses)
        .filter_map(|vip| if let IpAddr::V6(v6) = vip { Some(v6) } else { None })
        .collect();
    if v6.is_empty() {
        return Ok(None);
    }
    let groups = JoinedGroups::new(interface).map_err(|error| error.to_string())?;
    for vip in v6 {
        let [.., a, b, c] = vip.octets();
        // RFC 4291 section 2.7.1: ff02::1:ff00:0/104 and the address's last 24 bits.
        let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
        groups.join(group.into()).map_err(|error| error.to_string())?;
    }
    Ok(Some(groups))
}
