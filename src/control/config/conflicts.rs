//! What no single section can know: services that contradict each other.

use super::limits;
use super::reader::Problems;
use super::service::Placed;
use super::tunnel::RealTunnel;
use super::types::{Protocol, Tunnel, VipPrefix};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

pub(super) fn check(services: &[Placed], tunnel: &Tunnel, problems: &Problems) {
    names(services, problems);
    ports(services, problems);
    reals(services, tunnel, problems);
    groups(services, problems);
    totals(services, problems);
}

/// The region has room for so many real servers and VIPs.
fn totals(services: &[Placed], problems: &Problems) {
    let (mut prefixes, mut vips) = (HashSet::new(), HashSet::new());
    let mut reals = HashSet::new();
    for placed in services {
        let fitted = vips.len() <= limits::MAX_VIPS;
        if prefixes.insert(placed.service.vip) && fitted {
            vips.extend(placed.service.vip.addresses());
            if vips.len() > limits::MAX_VIPS {
                let message = format!("more than {} VIPs", limits::MAX_VIPS);
                let help = "each address of a prefix is one; spread the rest over other directors";
                problems.at(placed.vip.clone(), message, help);
            }
        }
        for (real, span) in placed.service.reals.iter().zip(&placed.reals) {
            // By another tunnel it is another one, with a path MTU of its own.
            let new = reals.insert((real.address, real.tunnel));
            if new && reals.len() == limits::MAX_REALS + 1 {
                let message = format!("more than {} real servers", limits::MAX_REALS);
                problems.at(span.clone(), message, "spread the rest over other directors");
            }
        }
    }
}

fn names(services: &[Placed], problems: &Problems) {
    let mut seen: HashMap<&str, &Placed> = HashMap::new();
    for placed in services {
        if let Some(first) = seen.insert(&placed.service.name, placed) {
            problems.between(
                placed.name.clone(),
                format!("two services are named \"{}\"", placed.service.name),
                (first.name.clone(), "the first"),
                "names tell services apart in `adit list` and in metrics: change one",
            );
        }
    }
}

/// Two services may share a port of a VIP where one names the VIP more exactly (an address, a longer
/// prefix), or the port (exact, list, range, any, in that order); where they are of one kind in both,
/// nothing could choose between them.
fn ports(services: &[Placed], problems: &Problems) {
    let mut by_vip: HashMap<(VipPrefix, Protocol, u8), Vec<&Placed>> = HashMap::new();
    for placed in services {
        let s = &placed.service;
        let rivals = by_vip.entry((s.vip, s.protocol, s.ports.precedence())).or_default();
        let clash = rivals.iter().find_map(|r| Some((r, r.service.ports.common(&s.ports)?)));
        if let Some((rival, port)) = clash {
            let port = if port == 0 { "every port".to_owned() } else { format!("port {port}") };
            problems.between(
                placed.ports.clone(),
                format!(
                    "services {} and {} both take {} {} {port}",
                    rival.service.name, s.name, s.vip, s.protocol
                ),
                (rival.ports.clone(), "already taken here"),
                "an exact port wins over a list, a list over a range, a range over \"any\"; two \
                 of one kind must not overlap",
            );
        }
        rivals.push(placed);
    }
}

fn reals(services: &[Placed], tunnel: &Tunnel, problems: &Problems) {
    let vips: HashMap<VipPrefix, &Placed> = services.iter().map(|p| (p.service.vip, p)).collect();
    let lengths: BTreeSet<u8> = vips.keys().map(VipPrefix::length).collect();
    let owner = |address: IpAddr| {
        lengths.iter().find_map(|length| vips.get(&VipPrefix::holding(address, *length)))
    };
    for placed in services {
        let spans = || placed.service.reals.iter().zip(&placed.reals);
        for ((real, span), (next, next_span)) in spans().zip(spans().skip(1)) {
            // Sorted by address, so duplicates are neighbours.
            if real.address == next.address {
                let (first, second) = if span.start < next_span.start {
                    (span, next_span)
                } else {
                    (next_span, span)
                };
                problems.between(
                    second.clone(),
                    format!("{} is twice in service {}", real.address, placed.service.name),
                    (first.clone(), "the first"),
                    "give it one entry, with the sum of the weights",
                );
            }
        }
        for (real, span) in spans() {
            if let Some(owner) = owner(real.address) {
                problems.between(
                    span.clone(),
                    format!("real server {} is also a VIP", real.address),
                    (owner.vip.clone(), "the VIP"),
                    "the tunnel would lead back into the director; give the real server's own \
                     address",
                );
            }
            if tunnel.sources().any(|source| source == real.address) {
                problems.at(
                    span.clone(),
                    format!("real server {} is the tunnel's own `source`", real.address),
                    "a director cannot be its own real server",
                );
            }
        }
    }
}

/// Services of one group share entries, so what an entry means must be the same in all.
fn groups(services: &[Placed], problems: &Problems) {
    let mut seen: HashMap<&str, &Placed> = HashMap::new();
    for placed in services {
        let Some(mine) = &placed.service.persistence else { continue };
        let (Some(group), Some(span)) = (&mine.group, &placed.group) else { continue };
        let first = *seen.entry(group).or_insert(placed);
        let Some(theirs) = &first.service.persistence else { continue };
        let ways = |p: &Placed| -> Vec<(IpAddr, RealTunnel)> {
            p.service.reals.iter().map(|real| (real.address, real.tunnel)).collect()
        };
        let difference = if mine.timeout != theirs.timeout {
            "timeout"
        } else if mine.ipv4_prefix != theirs.ipv4_prefix || mine.ipv6_prefix != theirs.ipv6_prefix {
            "prefix length"
        } else if ways(placed) != ways(first) {
            "set of real servers, or in how these are reached"
        } else {
            continue;
        };
        problems.between(
            span.clone(),
            format!(
                "services {} and {} of persistence group \"{group}\" differ in their {difference}",
                first.service.name, placed.service.name
            ),
            (first.group.clone().unwrap_or_default(), "the group's first service"),
            "services of a group send a client to one real server, so they must agree",
        );
    }
}
