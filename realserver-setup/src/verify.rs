//! Is the host the real server that it should be? Values in force, what they mean, how to mend them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use serde::Serialize;

use crate::desired::Desired;
use crate::firewall::ruleset::{Packet, obstacles};
use crate::firewall::{Rules, segment_comment, version_name};
use crate::kernel::{DECAP, Device, ParameterName, Version};
use crate::observed::Observed;
use crate::plan::filters;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// Works, and perhaps not as it is meant.
    Warning,
    /// Traffic fails, or anybody can forge it.
    Error,
}

impl Severity {
    /// The word that people read.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "ERROR",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at; stays the same from version to version.
    pub name: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What is in force.
    pub observed: String,
    /// What should be.
    pub expected: String,
    /// What it means for traffic.
    pub meaning: String,
    /// How to mend it; empty where there is nothing to mend.
    pub mend: String,
}

/// Findings as they are put together.
#[derive(Debug, Default)]
pub(crate) struct Findings(pub(crate) Vec<Finding>);

impl Findings {
    /// One more. Where all is well there is nothing to mend.
    pub(crate) fn add(
        &mut self,
        (name, severity): (&'static str, Severity),
        observed: impl Into<String>,
        expected: impl Into<String>,
        meaning: impl Into<String>,
        mend: impl Into<String>,
    ) {
        let mend = if severity == Severity::Ok { String::new() } else { mend.into() };
        self.0.push(Finding {
            name,
            severity,
            observed: observed.into(),
            expected: expected.into(),
            meaning: meaning.into(),
            mend,
        });
    }
}

/// Does traffic work, as far as these findings tell?
#[must_use]
pub fn is_fine(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.severity < Severity::Error)
}

/// What mends most things.
const APPLY: &str = "adit-realserver apply";

/// Looks at everything that a real server depends on, in the order of a packet's way in and out.
#[must_use]
pub fn verify(desired: &Desired, observed: &Observed) -> Vec<Finding> {
    let mut report = Report { desired, observed, findings: Findings::default() };
    report.foreign_firewalls();
    report.old_firewalls();
    report.ports();
    report.devices();
    report.rules();
    report.reverse_path();
    report.vips();
    report.arp();
    report.segments();
    report.own_vip();
    report.findings.0
}

struct Report<'r> {
    desired: &'r Desired,
    observed: &'r Observed,
    findings: Findings,
}

impl Report<'_> {
    /// Error, or as it should be.
    fn judge(
        &mut self,
        name: &'static str,
        good: bool,
        observed: impl Into<String>,
        expected: impl Into<String>,
        meaning: impl Into<String>,
        mend: impl Into<String>,
    ) {
        let severity = if good { Severity::Ok } else { Severity::Error };
        self.findings.add((name, severity), observed, expected, meaning, mend);
    }

    fn foreign_firewalls(&mut self) {
        if !self.observed.nftables {
            return;
        }
        let mut seen = BTreeSet::new();
        for entrance in self.desired.entrances() {
            for &source in self.desired.directors() {
                if Version::of(source) != entrance.version() {
                    continue;
                }
                for chain in obstacles(&self.observed.ruleset, Packet { source, entrance }) {
                    let what = entrance.describe();
                    let place = format!("{} {} {}", chain.family, chain.table, chain.chain);
                    if !seen.insert((place.clone(), what.clone())) {
                        continue;
                    }
                    let family = if source.is_ipv4() { "ip" } else { "ip6" };
                    let same = |director: &&IpAddr| Version::of(**director) == entrance.version();
                    let directors: Vec<_> = self
                        .desired
                        .directors()
                        .iter()
                        .filter(same)
                        .map(IpAddr::to_string)
                        .collect();
                    self.findings.add(
                        ("foreign_drop", Severity::Error),
                        format!("chain {place} drops {what} from {source}"),
                        "accepted from directors",
                        "what directors send does not arrive: a rule that accepts it in our table does not \
                         overrule another table",
                        format!(
                            "nft insert rule {place} {} {family} saddr {{ {} }} accept   (and in the file that \
                             makes this chain at boot)",
                            entrance.words(),
                            directors.join(", ")
                        ),
                    );
                }
            }
        }
        if seen.is_empty() {
            self.findings.add(
                ("foreign_drop", Severity::Ok),
                "no chain of nftables drops what directors send, as far as its rules can be understood",
                "accepted from directors",
                "tunnelled packets pass the firewalls of others",
                "",
            );
        }
    }

    fn old_firewalls(&mut self) {
        if self.observed.old_tables.is_empty() {
            return;
        }
        self.findings.add(
            ("old_iptables", Severity::Note),
            format!("tables {} are in use", self.observed.old_tables.join(", ")),
            "accept what directors send",
            "rules of the old iptables are not looked into",
            "iptables-legacy -S INPUT shows them; each director needs -s DIRECTOR -p 4 -j ACCEPT",
        );
    }

    fn ports(&mut self) {
        for port in self.desired.ports() {
            let there = self.observed.ports.contains(&port);
            let over = version_name(port.version);
            self.judge(
                "gue_port",
                there,
                if there { "there" } else { "missing" },
                format!("UDP port {} over {over} takes off GUE", port.port),
                if there { "GUE is unwrapped" } else { "GUE packets are refused as unknown UDP" },
                APPLY,
            );
        }
    }

    /// The TUN device of `adit-realserver decap`.
    fn userspace(&mut self) {
        let up = self.observed.links.get(DECAP).is_some_and(|link| link.up);
        self.judge(
            "tunnel_device",
            up,
            format!("{DECAP} {}", if up { "up" } else { "missing or down" }),
            format!("{DECAP} up"),
            if up {
                "tunnelled packets are unwrapped by adit-realserver decap"
            } else {
                "tunnelled packets are refused: nothing unwraps them"
            },
            "systemctl start adit-decap",
        );
        for device in Device::ALL {
            let doubles = device.protocols().iter().any(|protocol| [4, 41].contains(protocol));
            let name = device.name();
            if doubles && self.observed.links.get(name).is_some_and(|link| link.up) {
                self.findings.add(
                    ("unwrapped_twice", Severity::Error),
                    format!("{name} is up beside {DECAP}"),
                    "one of the two",
                    "each packet arrives twice",
                    format!("ip link set {name} down, or let the kernel unwrap: systemctl disable --now adit-decap"),
                );
            }
        }
    }

    fn devices(&mut self) {
        if self.desired.is_in_userspace() {
            return self.userspace();
        }
        for device in self.desired.devices() {
            let name = device.name();
            let link = self.observed.links.get(name);
            let (state, meaning) = match link {
                Some(link) if link.up => ("up", "tunnelled packets are unwrapped"),
                Some(_) => {
                    ("down", "tunnelled packets are dropped: the device that unwraps them is down")
                }
                None => ("missing", "tunnelled packets are refused: no device unwraps them"),
            };
            let mend = match link {
                Some(_) => format!("ip link set {name} up, or {APPLY}"),
                None => format!("modprobe {}, or {APPLY}", device.module().name()),
            };
            let good = link.is_some_and(|link| link.up);
            self.judge(
                "tunnel_device",
                good,
                format!("{name} {state}"),
                format!("{name} up"),
                meaning,
                mend,
            );
            if let Some(link) = link.filter(|_| device.made().is_some()) {
                let local = link.local;
                self.local(device, local, link.both_versions || device != Device::Ip6);
            }
        }
    }

    /// The address that a device over IPv6 unwraps for.
    fn local(&mut self, device: Device, local: Option<IpAddr>, both_versions: bool) {
        let name = device.name();
        let ours = local.is_some_and(|local| self.observed.holders(local).next().is_some());
        let named = self.desired.local().is_none_or(|wanted| local == Some(wanted.into()));
        let shown = local.map_or_else(|| "none".to_owned(), |local| local.to_string());
        self.judge(
            "tunnel_local",
            ours && named && both_versions,
            format!(
                "{name} unwraps {} for {shown}",
                if both_versions { "both IP versions" } else { "one IP version" }
            ),
            "both, for an address of this host that directors send to",
            if ours {
                "packets to other addresses of this host are not unwrapped"
            } else {
                "no such address here"
            },
            format!("{APPLY} --local ADDRESS"),
        );
    }

    fn rules(&mut self) {
        let rules = self.desired.rules();
        if !self.observed.nftables {
            return self.findings.add(
                ("accept_rules", Severity::Warning),
                "nftables does not work here",
                "tunnelled packets from directors alone",
                "anybody who reaches this host can send packets in any client's name through the tunnel",
                "install nftables (and a kernel with it), or let a firewall in front of this host accept the tunnel's \
                 protocol from directors alone",
            );
        }
        let is_ours = |chain: &str| chain == "input";
        let wanted = rules.table();
        let part = |table: &crate::firewall::Table| {
            let rules: Vec<_> =
                table.rules.iter().filter(|(chain, _)| is_ours(chain)).cloned().collect();
            let sets: Vec<_> = table
                .sets
                .iter()
                .filter(|(name, _)| name.starts_with("directors"))
                .map(|(n, s)| (n.clone(), s.clone()))
                .collect();
            (rules, sets, table.chains.get("input").cloned())
        };
        let good = self.observed.table.as_ref().is_some_and(|table| part(table) == part(&wanted));
        let shown = match &self.observed.table {
            _ if good => "in force",
            Some(_) => "changed",
            None => "missing",
        };
        self.judge(
            "accept_rules",
            good,
            shown,
            described(&rules),
            if good {
                "tunnelled packets are taken from directors alone"
            } else {
                "anybody who reaches this host may send packets in any client's name through the tunnel, or a \
                 director may not"
            },
            APPLY,
        );
    }

    fn reverse_path(&mut self) {
        if !self.desired.versions().contains(&Version::V4) {
            return;
        }
        let name = ParameterName::RpFilter;
        let devices = self.desired.devices();
        let carriers = devices.iter().filter(|device| device.carries(Version::V4));
        let userspace = self.desired.is_in_userspace().then_some(DECAP);
        let carriers: Vec<_> = carriers.map(|device| device.name()).chain(userspace).collect();
        for interface in carriers {
            if !self.observed.links.contains_key(interface) {
                continue;
            }
            let (all, own) = (self.observed.own(name, "all"), self.observed.own(name, interface));
            let in_force = self.observed.effective(name, interface);
            let bad = filters(self.observed, interface);
            let severity = match in_force {
                0 => Severity::Ok,
                _ if bad => Severity::Error,
                _ => Severity::Warning,
            };
            let meaning = match severity {
                Severity::Error => format!(
                    "what {interface} unwraps is dropped without a word: the reverse-path filter wants clients to be \
                     reached by {interface}, and the larger of all and {interface} counts"
                ),
                Severity::Warning => "loose: passes while every client has a route".to_owned(),
                Severity::Ok | Severity::Note => {
                    "packets of clients pass, although answers leave elsewhere".to_owned()
                }
            };
            self.findings.add(
                ("rp_filter", severity),
                format!("{in_force} on {interface} (all {all}, {interface} {own})"),
                "0",
                meaning,
                format!(
                    "sysctl -w {}=0 {}=0, or {APPLY}, which keeps the filter of other interfaces; look for the file \
                     in /etc/sysctl.d that sets it",
                    name.all(),
                    name.of(interface)
                ),
            );
        }
    }

    fn vips(&mut self) {
        let is_quiet = |name: &&str| !self.observed.links[*name].arp;
        for &vip in self.desired.vips() {
            let holders: Vec<_> = self.observed.holders(vip).collect();
            let holder = self.desired.holder(vip);
            let (right, wrong): (Vec<_>, Vec<_>) = holders.into_iter().partition(is_quiet);
            self.judge(
                "vip",
                !right.is_empty(),
                if right.is_empty() { format!("{vip} missing") } else { format!("{vip} on {}", right.join(", ")) },
                format!("{vip} on {holder}"),
                if right.is_empty() {
                    "packets to the VIP are not this host's: they are dropped, or forwarded back to the director"
                } else {
                    "packets to the VIP are this host's"
                },
                format!("ip addr add {vip}/{} dev {holder}, or {APPLY}", Version::of(vip).host_bits()),
            );
            for device in wrong {
                self.findings.add(
                    ("vip_elsewhere", Severity::Error),
                    format!("{vip} on {device}"),
                    "on no interface that faces a network",
                    "this host answers for the VIP there, and takes clients away from the director",
                    format!(
                        "ip addr del {vip} dev {device}, and in the host's network configuration"
                    ),
                );
            }
        }
    }

    fn arp(&mut self) {
        if !self.desired.versions().contains(&Version::V4) {
            return;
        }
        for (name, expected, meaning) in [
            (
                ParameterName::ArpIgnore,
                1,
                "this host answers ARP for the VIP: clients on the segment, or its router, go past the director",
            ),
            (
                ParameterName::ArpAnnounce,
                2,
                "this host's ARP requests may name the VIP as theirs, and neighbours learn the wrong owner",
            ),
        ] {
            let in_force = |interface: &str| self.observed.effective(name, interface);
            let interfaces: Vec<_> = self.observed.arp_interfaces().map(str::to_owned).collect();
            let loud: Vec<_> =
                interfaces.iter().filter(|i| !name.keeps_silent(in_force(i))).collect();
            let shown = if loud.is_empty() {
                format!("silent on all {} interfaces that speak ARP", interfaces.len())
            } else {
                let mut text = String::new();
                for (at, interface) in loud.iter().enumerate() {
                    let comma = if at == 0 { "" } else { ", " };
                    // Writing to a String cannot fail.
                    let _ = write!(text, "{comma}{} on {interface}", in_force(interface));
                }
                text
            };
            self.judge(
                name.name(),
                loud.is_empty(),
                shown,
                format!(
                    "{expected} on every interface (the larger of all and the interface counts)"
                ),
                if loud.is_empty() { "nobody learns the VIP from this host" } else { meaning },
                format!("sysctl -w {}={expected}, or {APPLY}", name.all()),
            );
        }
    }

    fn segments(&mut self) {
        let sizes = self.desired.segment_sizes();
        if sizes.is_empty() {
            return self.findings.add(
                ("segment_size", Severity::Note),
                "not limited (path_mtu = 0)",
                "",
                "clients learn the tunnel's MTU by ICMP; where a firewall on their way filters it, uploads hang",
                "set path_mtu to the MTU of the path from the directors",
            );
        }
        let rules = self.desired.rules().table();
        for (version, size) in sizes {
            let good = if self.observed.nftables {
                let rule = ("output".to_owned(), segment_comment(version, size));
                let set = if version == Version::V4 { "vips4" } else { "vips6" };
                self.observed.table.as_ref().is_some_and(|table| {
                    table.rules.contains(&rule)
                        && table.sets.get(set) == rules.sets.get(set)
                        && table.chains.get("output") == rules.chains.get("output")
                })
            } else {
                let routes = &self.observed.routes;
                let vips = self.desired.vips().iter().filter(|vip| Version::of(**vip) == version);
                routes.routes.get(&version).is_some_and(|(_, announced)| *announced == size)
                    && vips.into_iter().all(|vip| routes.sources.contains(vip))
            };
            let by = if self.observed.nftables { "nftables" } else { "a route of its own" };
            self.judge(
                "segment_size",
                good,
                if good { format!("limited by {by}") } else { format!("not limited by {by}") },
                format!("at most {size} bytes to {} VIPs", version_name(version)),
                if good {
                    "clients send segments that fit behind the outer header"
                } else {
                    "clients' full segments do not fit the tunnel: uploads hang wherever ICMP is filtered"
                },
                APPLY,
            );
        }
    }

    fn own_vip(&mut self) {
        self.findings.add(
            ("own_vip", Severity::Note),
            "a real server reaches itself, never another one, at a VIP it owns",
            "",
            "programs on this host that connect to the VIP get this host's own service, whatever the director says, and \
             also when that service is down",
            "let programs on this host that need the balanced service use the addresses of the real servers",
        );
    }
}

fn described(rules: &Rules) -> String {
    let table = rules.table();
    let input = table.rules.iter().filter(|(chain, _)| chain == "input");
    input.map(|(_, comment)| comment.as_str()).collect::<Vec<_>>().join(", ")
}
