//! Services as they were found, and what must go before the configuration takes them.
//!
//! Each rule here is one of `config::parse`'s that a foreign file may break. What breaks one is
//! reported and left out, so that the text that is written is always taken.

use super::ledger::Ledger;
use super::report::{Kind, Remark};
use super::schedulers::{self, Chosen};
use super::thresholds::Thresholds;
use crate::control::config::{
    Check, DurationBounds, Health, MAX_REALS, MAX_SERVICES, MAX_VIPS, Protocol, RealTunnel,
    VipPrefix, WEIGHT, label, not_unicast,
};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

/// Entries of real servers in one configuration. Groups multiply them: this many take 4 MB of
/// text, and a director knows at most some thousand different ones.
pub(super) const MAX_REAL_ENTRIES: usize = 65_536;

/// Something the input says, for the report.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) words: String,
}

/// A service that was found.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) place: Place,
    pub(super) name: Option<String>,
    pub(super) vip: VipPrefix,
    /// `None` is every port.
    pub(super) port: Option<u16>,
    pub(super) protocol: Protocol,
    pub(super) scheduler: Chosen,
    /// Never of TCP, and never with persistence.
    pub(super) one_packet: bool,
    pub(super) persistence: Option<Persistence>,
    pub(super) check: Option<Check>,
    pub(super) reals: Vec<Real>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Persistence {
    pub(super) timeout: Duration,
    /// Of the VIP's family.
    pub(super) prefix: u8,
}

/// A real server that was found.
#[derive(Debug, Clone)]
pub(super) struct Real {
    pub(super) place: Place,
    pub(super) address: IpAddr,
    /// As IPVS has it, up to 2^31 − 1.
    pub(super) weight: u32,
    pub(super) thresholds: Thresholds,
    pub(super) tunnel: RealTunnel,
    /// Why it is written as a comment only.
    pub(super) commented: Option<&'static str>,
}

/// A service as it is written.
#[derive(Debug, Clone)]
pub(super) struct Settled {
    pub(super) line: usize,
    pub(super) name: String,
    pub(super) vip: VipPrefix,
    pub(super) port: Option<u16>,
    pub(super) protocol: Protocol,
    pub(super) scheduler: Chosen,
    pub(super) one_packet: bool,
    pub(super) persistence: Option<Persistence>,
    pub(super) check: Option<Check>,
    pub(super) reals: Vec<SettledReal>,
    /// Written as a comment: no real server is left.
    pub(super) commented: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct SettledReal {
    pub(super) address: IpAddr,
    pub(super) weight: u16,
    pub(super) thresholds: Thresholds,
    pub(super) tunnel: RealTunnel,
    pub(super) commented: Option<&'static str>,
}

/// Idle timeouts of the whole director.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Timeouts {
    pub(super) tcp: Option<Duration>,
    pub(super) tcp_fin: Option<Duration>,
    pub(super) udp: Option<Duration>,
}

/// A number of seconds brought into the range that the configuration takes, and what to say if it
/// was not in it.
pub(super) fn bounded(seconds: u64, bounds: &DurationBounds) -> (Duration, Option<Remark>) {
    let asked = Duration::from_secs(seconds);
    let taken = asked.clamp(bounds.least, bounds.most);
    let remark = (taken != asked).then(|| {
        Remark::changed(
            format!("{seconds} s is out of range; {} s is taken", taken.as_secs()),
            bounds.reason,
        )
    });
    (taken, remark)
}

/// Leaves out what the configuration would refuse.
pub(super) fn settle(services: Vec<Service>, ledger: &mut Ledger) -> Vec<Settled> {
    let services = without_bad_vips(services, ledger);
    let vips: HashSet<IpAddr> =
        services.iter().flat_map(|service| service.vip.addresses()).collect();
    let mut probes = Probes::default();
    let mut room = Room::default();
    let mut names = HashSet::new();
    let mut settled = Vec::new();
    for mut service in services {
        service.reals = reals(std::mem::take(&mut service.reals), &vips, &mut room, ledger);
        let scaled = weights(&service, ledger);
        let reals: Vec<SettledReal> = service
            .reals
            .iter()
            .zip(scaled)
            .map(|(real, weight)| SettledReal {
                address: real.address,
                weight,
                thresholds: real.thresholds,
                tunnel: real.tunnel,
                commented: real.commented,
            })
            .collect();
        weight_zero(&service, ledger);
        let commented = reals.iter().all(|real| real.commented.is_some());
        if commented {
            ledger.note(
                Some(service.place.line),
                None,
                service.place.words.clone(),
                Remark::left_out(
                    "the service is written as a comment: it has no real server that could be \
                     imported, and would take its VIP's packets and drop them",
                    "give it real servers and take the comment signs away",
                ),
            );
        }
        let check = probes.take(&service, ledger);
        settled.push(Settled {
            line: service.place.line,
            name: name(&service, &mut names, ledger),
            vip: service.vip,
            port: service.port,
            protocol: service.protocol,
            scheduler: service.scheduler,
            one_packet: service.one_packet,
            persistence: service.persistence,
            check,
            reals,
            commented,
        });
    }
    settled
}

/// Ports of checks that are taken, by VIP and the port that is connected to.
#[derive(Default)]
struct Probes(HashMap<(IpAddr, u16), usize>);

impl Probes {
    /// The check of a service if the configuration takes it: there must be a port for each of its real
    /// servers, and an address to check from.
    fn take(&mut self, service: &Service, ledger: &mut Ledger) -> Option<Check> {
        let check = service.check?;
        let active = || service.reals.iter().filter(|real| real.commented.is_none());
        let taken = self.0.entry((service.vip.address(), check.port)).or_default();
        let remark = if active().any(|real| real.address.is_ipv4() != service.vip.is_ipv4()) {
            Remark::left_out(
                "the VIP and a real server are of different families, and the file does not say from \
                 which address to check",
                "name it as `source` in [health], and give the service a `check`",
            )
        } else if *taken + active().count() > Health::default().blocks() {
            Remark::left_out(
                "so many real servers of one VIP and port cannot be checked from the default ports",
                "widen `ports` in [health], and give the service a `check`",
            )
        } else {
            *taken += active().count();
            return Some(check);
        };
        ledger.note(Some(service.place.line), None, service.place.words.clone(), remark);
        None
    }
}

/// Services of one address each in the place of one of a prefix, where the prefix cannot be taken as a
/// whole: each address is then judged by itself.
fn split(
    service: Service,
    seen: &HashSet<(IpAddr, Protocol, Option<u16>)>,
    vips: &HashSet<IpAddr>,
) -> Vec<Service> {
    let new = service.vip.addresses().filter(|vip| !vips.contains(vip)).count();
    let whole = vips.len() + new <= MAX_VIPS
        && service.vip.addresses().all(|vip| {
            not_unicast(vip).is_none() && !seen.contains(&(vip, service.protocol, service.port))
        });
    if whole {
        return vec![service];
    }
    let one = |vip| Service { vip: VipPrefix::host(vip), ..service.clone() };
    service.vip.addresses().map(one).collect()
}

/// Services whose VIP is an address to serve, that are not there twice, and that fit.
fn without_bad_vips(services: Vec<Service>, ledger: &mut Ledger) -> Vec<Service> {
    let mut seen = HashSet::new();
    let mut vips = HashSet::new();
    let mut kept: Vec<Service> = Vec::new();
    for found in services {
        for service in split(found, &seen, &vips) {
            let vip = service.vip.address();
            let key = |vip| (vip, service.protocol, service.port);
            let remark = if let Some(reason) = not_unicast(vip) {
                Some(Remark::left_out(
                    format!("the VIP {vip} is {reason}"),
                    "an address that clients can send to",
                ))
            } else if seen.contains(&key(vip)) {
                Some(Remark::left_out(
                    "there is a service of this address, port and protocol already",
                    "put its real servers into the first one",
                ))
            } else if kept.len() >= MAX_SERVICES {
                Some(Remark::left_out(
                    format!("a director has at most {MAX_SERVICES} services"),
                    "spread them over several directors",
                ))
            } else if !vips.contains(&vip) && vips.len() >= MAX_VIPS {
                Some(Remark::left_out(
                    format!("a director has at most {MAX_VIPS} VIPs"),
                    "spread them over several directors",
                ))
            } else {
                None
            };
            match remark {
                Some(remark) => {
                    let words = format!("{} ({})", service.place.words, service.vip);
                    ledger.note(Some(service.place.line), None, words, remark);
                }
                None => {
                    // Whole prefixes were looked at before.
                    vips.extend(service.vip.addresses());
                    seen.extend(service.vip.addresses().map(key));
                    kept.push(service);
                }
            }
        }
    }
    kept
}

/// What is left of the director's room for real servers.
#[derive(Default)]
struct Room {
    different: HashSet<(IpAddr, RealTunnel)>,
    entries: usize,
}

impl Room {
    /// Why there is none for another one.
    fn refuses(&self, real: &Real) -> Option<String> {
        if !self.different.contains(&(real.address, real.tunnel))
            && self.different.len() >= MAX_REALS
        {
            return Some(format!("a director has at most {MAX_REALS} different real servers"));
        }
        (self.entries >= MAX_REAL_ENTRIES)
            .then(|| format!("at most {MAX_REAL_ENTRIES} entries of real servers are imported"))
    }

    fn take(&mut self, real: &Real) {
        self.different.insert((real.address, real.tunnel));
        self.entries += 1;
    }
}

fn reals(
    reals: Vec<Real>,
    vips: &HashSet<IpAddr>,
    room: &mut Room,
    ledger: &mut Ledger,
) -> Vec<Real> {
    let mut seen = HashSet::new();
    let mut kept = Vec::new();
    for real in reals {
        let remark = if let Some(reason) = not_unicast(real.address) {
            Some(Remark::left_out(
                format!("the real server is {reason}"),
                "the address its tunnel ends at",
            ))
        } else if vips.contains(&real.address) {
            Some(Remark::left_out(
                "the real server's address is a VIP too: the tunnel would lead back",
                "give the real server's own address",
            ))
        } else if seen.contains(&real.address) {
            Some(Remark::left_out(
                "this real server is in the service already: here it is told apart by its address \
                 alone",
                "give it one entry, with the sum of the weights",
            ))
        } else {
            room.refuses(&real)
                .map(|why| Remark::left_out(why, "spread them over several directors"))
        };
        match remark {
            Some(remark) => {
                ledger.note(Some(real.place.line), None, real.place.words.clone(), remark);
            }
            None => {
                seen.insert(real.address);
                room.take(&real);
                kept.push(real);
            }
        }
    }
    kept
}

/// Weights in the configuration's range, in the same proportions.
fn weights(service: &Service, ledger: &mut Ledger) -> Vec<u16> {
    let most = *WEIGHT.end();
    let heaviest = service.reals.iter().max_by_key(|real| real.weight);
    let Some(heaviest) = heaviest else { return Vec::new() };
    if heaviest.weight > u32::from(most) {
        ledger.note(
            Some(heaviest.place.line),
            None,
            heaviest.place.words.clone(),
            Remark::changed(
                format!("weights go to {most}: all of the service are divided alike"),
                "nothing, unless small weights became 1 that were less, or the scheduler compares \
                 them to connections, as `ovf`, `lblc` and `lblcr` do",
            ),
        );
    }
    let scale = |weight: u32| -> u16 {
        if heaviest.weight <= u32::from(most) {
            return u16::try_from(weight).unwrap_or(most);
        }
        let part = u64::from(weight) * u64::from(most) / u64::from(heaviest.weight);
        // Only a weight of 0 means drained.
        u16::try_from(part).unwrap_or(most).max(u16::from(weight > 0))
    };
    service.reals.iter().map(|real| scale(real.weight)).collect()
}

/// Says what weight 0 means under schedulers for which it means something else in IPVS.
fn weight_zero(service: &Service, ledger: &mut Ledger) {
    if !schedulers::refuses_without_weight(&service.scheduler) {
        return;
    }
    for real in service.reals.iter().filter(|real| real.weight == 0 && real.commented.is_none()) {
        let remark = schedulers::weight_zero(service.scheduler.kind);
        ledger.note(Some(real.place.line), None, real.place.words.clone(), remark);
    }
}

/// A unique name: the file's own if it can be one, else one made of what the service is.
fn name(service: &Service, names: &mut HashSet<String>, ledger: &mut Ledger) -> String {
    if let Some(own) = &service.name {
        let remark = match label("name", own) {
            Err((_, help)) => Some(format!("it cannot be a service's name here: {help}")),
            Ok(_) if names.contains(own) => Some("another service has this name".to_owned()),
            Ok(_) => None,
        };
        match remark {
            None => {
                names.insert(own.clone());
                return own.clone();
            }
            Some(why) => ledger.note(
                Some(service.place.line),
                None,
                super::report::visible(own),
                Remark::new(Kind::Changed, why, "rename the service in the configuration"),
            ),
        }
    }
    let address = service.vip.to_string().replace([':', '/'], "-");
    let port = service.port.map_or_else(|| "any".to_owned(), |port| port.to_string());
    let made = format!("{}-{address}-{port}", service.protocol);
    // Unique by itself, unless the file gave this very name to another service.
    let mut name = made.clone();
    let mut number = 2;
    while !names.insert(name.clone()) {
        name = format!("{made}-{number}");
        number += 1;
    }
    name
}
