//! Findings from what was seen of probes: pure.
//!
//! A probe is followed along its way, and the first place where it was not seen any more is where it was
//! lost; the host's own state says why, where the fault is here. All is well only where a whole exchange
//! was seen: whatever else was seen, or not seen, is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::evidence::{Connecting, Evidence, Seen};
use crate::desired::Desired;
use crate::kernel::{ParameterName, Version};
use crate::observed::Observed;
use crate::plan::filters;
use crate::verify::{Finding, Findings, Severity};

/// MTU that segments are judged by where `path_mtu` is 0: Ethernet's.
const ETHERNET: u16 = 1500;

/// The host's own state, as far as it explains what was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// What keeps tunnel packets from being unwrapped: devices that are missing or down.
    pub devices: Vec<String>,
    /// What may drop tunnel packets: firewalls of this host.
    pub firewalls: Vec<String>,
    /// VIPs that are on no device.
    pub missing: BTreeSet<IpAddr>,
    /// Devices whose reverse-path filter drops clients, or directors.
    pub filters: BTreeSet<String>,
    /// Largest segment in bytes that the tunnels carry, by version of the VIP.
    pub carries: BTreeMap<Version, u16>,
    /// Where this host listens for a director.
    pub port: u16,
}

impl Standing {
    /// The state of `observed`, of which `verify` has found `findings`.
    #[must_use]
    pub fn of(desired: &Desired, observed: &Observed, findings: &[Finding], port: u16) -> Self {
        let said = |names: &[&str]| {
            let wrong = findings.iter().filter(|f| f.severity == Severity::Error);
            let named = wrong.filter(|finding| names.contains(&finding.name));
            named.map(|finding| finding.observed.clone()).collect()
        };
        let missing = |vip: &&IpAddr| observed.holders(**vip).next().is_none();
        // Tunnel packets come by any interface, and clients' by the devices that unwrap.
        let strict = |name: &&String| {
            *name != "lo"
                && (filters(observed, name)
                    || observed.effective(ParameterName::RpFilter, name) == 1)
        };
        Self {
            devices: said(&["tunnel_device", "tunnel_local", "gue_port"]),
            firewalls: said(&["foreign_drop", "accept_rules"]),
            missing: desired.vips().iter().filter(missing).copied().collect(),
            filters: observed.links.keys().filter(strict).cloned().collect(),
            carries: desired.segment_sizes_for(desired.path_mtu().unwrap_or(ETHERNET)),
            port,
        }
    }
}

/// Findings about all VIPs.
#[must_use]
pub fn judge(evidence: &Evidence, standing: &Standing) -> Vec<Finding> {
    let mut report = Report { evidence, standing, findings: Findings::default() };
    for (&vip, seen) in &evidence.vips {
        report.vip(vip, seen);
    }
    if evidence.vips.is_empty() {
        report.error("live_not_probed", "no VIP was watched", "", "nothing was tried", "");
    }
    let is_error = |finding: &Finding| finding.severity == Severity::Error;
    if evidence.missed > 0 && report.findings.0.iter().any(is_error) {
        report.findings.add(
            ("live_missed", Severity::Note),
            format!("{} packets went by without being looked at", evidence.missed),
            "0",
            "this host is busy: what is said not to have come may be among them",
            "try again, with a longer --for",
        );
    }
    report.findings.0
}

struct Report<'r> {
    evidence: &'r Evidence,
    standing: &'r Standing,
    findings: Findings,
}

impl Report<'_> {
    fn error(
        &mut self,
        name: &'static str,
        observed: impl Into<String>,
        expected: impl Into<String>,
        meaning: impl Into<String>,
        mend: impl Into<String>,
    ) {
        self.findings.add((name, Severity::Error), observed, expected, meaning, mend);
    }

    fn vip(&mut self, vip: IpAddr, seen: &Seen) {
        if seen.arp_replies > 0 {
            self.error(
                "live_arp_leak",
                format!("{} ARP replies left that claim {vip}", seen.arp_replies),
                "none",
                "this host answers for the VIP on its segment, and takes clients away from the director",
                "adit-realserver apply; arp_ignore of verify says what is in force",
            );
        }
        if seen.is_whole(self.standing.port) {
            return self.whole(vip, seen);
        }
        let before = self.findings.0.len();
        if seen.unwrapped > 0 {
            self.after_the_tunnel(vip, seen);
        } else if seen.arrived > 0 {
            self.not_unwrapped(vip, seen);
        } else {
            self.never_arrives(vip, seen);
        }
        if self.findings.0.len() == before {
            self.error(
                "live_unfinished",
                format!("probes of {vip} came, and the exchange did not end"),
                "a whole exchange",
                "nothing that was seen is wrong, and not all of it was seen",
                "try again, with a longer --for here and in adit probe",
            );
        }
    }

    fn whole(&mut self, vip: IpAddr, seen: &Seen) {
        let ports: Vec<_> = seen
            .ports
            .iter()
            .filter(|(_, port)| port.opened > 0)
            .map(|(p, _)| p.to_string())
            .collect();
        self.findings.add(
            ("live_exchange", Severity::Ok),
            format!(
                "{vip}: probes to ports {} were answered, and full packets went both ways",
                ports.join(", ")
            ),
            "",
            "clients that come by this director are served",
            "",
        );
        if seen.ports.keys().all(|port| *port == self.standing.port) {
            self.findings.add(
                ("live_service", Severity::Note),
                format!("no service of {vip} was tried"),
                "",
                "the director knows of no TCP port there",
                "",
            );
        }
        if let Some((announced, carries)) = self.too_large(vip, seen) {
            self.findings.add(
                ("live_segment_size", Severity::Warning),
                format!("SYN-ACKs of {vip} allow segments of {announced} bytes"),
                format!("{carries} at most"),
                "works while ICMP \"fragmentation needed\" reaches every client: where it is filtered, uploads hang",
                "adit-realserver apply, which limits it",
            );
        }
    }

    fn never_arrives(&mut self, vip: IpAddr, seen: &Seen) {
        let tunnels = "tunnel packets of this VIP from a director";
        if !seen.strangers.is_empty() {
            let named: Vec<_> = seen.strangers.iter().map(IpAddr::to_string).collect();
            return self.error(
                "live_not_director",
                format!("probes of {vip} came from {}", named.join(", ")),
                format!("{tunnels} that is named here"),
                "they are dropped: the sender is not among the directors, whose packets alone are taken",
                "where it is a director, add its outer source address to directors, and adit-realserver apply",
            );
        }
        let same = |other: IpAddr| other != vip && Version::of(other) == Version::of(vip);
        let mut others = self.evidence.vips.iter().filter(|(other, _)| same(**other));
        if seen.others > 0 || others.any(|(_, seen)| seen.arrived + seen.others > 0) {
            return self.error(
                "live_not_probed",
                format!("no probe of {vip} came, while other tunnel packets did"),
                tunnels,
                "the way is open, and the director was not asked to try this VIP",
                "on the director: adit probe with this host's address (and --service); or name the VIPs with --vip here",
            );
        }
        self.error(
            "live_never_arrives",
            format!("no tunnel packet for {vip} from a director reached this host"),
            tunnels,
            "they are filtered on the way (IP protocol 4, 41 or 47, or UDP for GUE), the director has no route here, or \
             nobody has run adit probe meanwhile",
            "let the firewalls and security groups between the director and this host pass the tunnel's IP protocol; on \
             the director: adit probe with this host's address",
        );
    }

    fn not_unwrapped(&mut self, vip: IpAddr, seen: &Seen) {
        let came = format!(
            "{} probes of {vip} arrived in tunnel packets, none was unwrapped",
            seen.arrived
        );
        let Standing { devices, firewalls, filters, .. } = self.standing;
        if !devices.is_empty() || seen.refused > 0 {
            let why = match (devices.is_empty(), seen.refused > 0) {
                (false, _) => devices.join(", "),
                (true, _) => "this host answered that nobody takes them".to_owned(),
            };
            return self.error(
                "live_not_unwrapped",
                format!("{came}: {why}"),
                "a device that unwraps them, and is up",
                "the kernel has no device for this kind of tunnel, or it is down",
                "adit-realserver apply, with the tunnels that the director uses (modprobe ipip, ip link set tunl0 up)",
            );
        }
        if self.evidence.reverse_path_drops > 0 && !filters.is_empty() && firewalls.is_empty() {
            return self.reverse_path(vip, "the tunnel packets themselves");
        }
        let why = match firewalls[..] {
            [] => String::new(),
            _ => format!(" ({})", firewalls.join("; ")),
        };
        self.error(
            "live_firewall",
            format!("{came}, and the device for them is up{why}"),
            "accepted from directors",
            "a firewall on this host drops them before they are unwrapped",
            "nft list ruleset, iptables -S INPUT, tc filter show dev … ingress: accept the tunnel's IP protocol from the directors' addresses",
        );
    }

    fn reverse_path(&mut self, vip: IpAddr, what: &str) {
        let devices: Vec<_> = self.standing.filters.iter().map(String::as_str).collect();
        self.error(
            "live_rp_filter",
            format!(
                "the reverse-path filter dropped {} packets while probes of {vip} got no answer; it is strict on {}",
                self.evidence.reverse_path_drops,
                devices.join(", ")
            ),
            "0 on the devices that unwrap (the larger of all and the device's own counts)",
            format!("the kernel drops {what} without a word, since it would reach their source another way"),
            "sysctl -w net.ipv4.conf.all.rp_filter=0, and of the device; or adit-realserver apply",
        );
    }

    fn after_the_tunnel(&mut self, vip: IpAddr, seen: &Seen) {
        if self.standing.missing.contains(&vip) {
            return self.error(
                "live_vip_missing",
                format!("{} probes were unwrapped, and {vip} is no address of this host", seen.unwrapped),
                format!("{vip} on the device that unwraps"),
                "the kernel drops what is for the VIP, or forwards it, perhaps back to the director",
                "adit-realserver apply",
            );
        }
        let tried = |port: &&Connecting| port.asked > 0;
        let silent =
            seen.ports.values().filter(tried).any(|port| port.accepted + port.refused == 0);
        let dropped = self.evidence.reverse_path_drops > 0 && !self.standing.filters.is_empty();
        if silent && dropped {
            return self.reverse_path(vip, "what is unwrapped");
        }
        let before = self.findings.0.len();
        for (&port, connecting) in seen.ports.iter().filter(|(_, port)| tried(port)) {
            self.port(vip, port, connecting);
        }
        if self.findings.0.len() == before {
            self.bytes(vip, seen);
        }
    }

    /// A port that probes tried to connect to.
    fn port(&mut self, vip: IpAddr, port: u16, connecting: &Connecting) {
        if connecting.opened > 0 {
            return;
        }
        if connecting.refused > 0 && connecting.accepted == 0 {
            let (meaning, mend) = if port == self.standing.port {
                (
                    "this program could not listen there",
                    "choose another with --port, here and in adit probe",
                )
            } else {
                (
                    "the service does not run, or listens on other addresses only",
                    "start it, and let it listen on the VIP or on all addresses (listen_addresses, bind-address, bind)",
                )
            };
            return self.error(
                "live_nobody_listens",
                format!("a reset left {vip}:{port}, {} times", connecting.refused),
                format!("a service that listens on {vip}:{port}"),
                meaning,
                mend,
            );
        }
        if connecting.accepted == 0 {
            return self.error(
                "live_no_answer",
                format!("{} SYNs for {vip}:{port} were unwrapped, and nothing left", connecting.asked),
                "a SYN-ACK",
                "a firewall on this host drops them behind the tunnel, or the answer before it leaves; or the \
                 service's queue is full",
                "nft list ruleset: accept this port on the devices that unwrap",
            );
        }
        self.error(
            "live_reply_lost",
            format!(
                "{} SYN-ACKs left from {vip}:{port}, and none was acknowledged",
                connecting.accepted
            ),
            "an ACK from the director's host",
            "answers leave and never come back to who asked: the network between drops packets whose source is the VIP \
             (source filtering, unicast RPF, anti-spoofing, commonest between data centres), or the director's host \
             drops them (rp_filter, its firewall)",
            format!(
                "let the routers and hypervisors on the way out of here pass {vip} as a source address; on the director: \
                 adit doctor"
            ),
        );
    }

    /// All ports that were tried were reached.
    fn bytes(&mut self, vip: IpAddr, seen: &Seen) {
        let port = self.standing.port;
        if !seen.ports.contains_key(&port) {
            return self.error(
                "live_not_asked",
                format!("no probe asked for bytes on {vip}:{port}"),
                "one that does",
                "health checks of the director come, and no adit probe",
                "on the director: adit probe with this host's address and the same --port",
            );
        }
        if seen.download.asked > 0 && seen.download.done == 0 && seen.repeated > 0 {
            self.error(
                "live_reply_too_large",
                format!(
                    "{} full segments from {vip} had to be sent again, and never arrived, while small ones do",
                    seen.repeated
                ),
                "full segments that arrive",
                "the way back carries less than this host's interface, and ICMP \"fragmentation needed\" to the VIP is \
                 filtered: clients get small answers and hang in large ones",
                "lower the MTU of this host's route to clients (ip route … mtu), or let ICMP pass to the VIP",
            );
        }
        if seen.upload.asked > 0 && seen.upload.done == 0 {
            match self.too_large(vip, seen) {
                Some((announced, carries)) => self.error(
                    "live_segment_size",
                    format!("SYN-ACKs of {vip} allow segments of {announced} bytes, and full ones do not arrive"),
                    format!("{carries} at most"),
                    "with the outer header they do not fit the path, and ICMP \"fragmentation needed\" is filtered: \
                     uploads hang",
                    "set path_mtu to the MTU of the path from the directors, and adit-realserver apply",
                ),
                None => self.error(
                    "live_path_narrow",
                    format!("full segments to {vip} do not arrive, although SYN-ACKs limit them as path_mtu says"),
                    "full segments that arrive",
                    "the path from the directors carries less than path_mtu, and ICMP \"fragmentation needed\" is \
                     filtered: uploads hang",
                    "lower path_mtu to what the path carries, and adit-realserver apply",
                ),
            }
        }
    }

    /// The segment size that SYN-ACKs announced, and what the tunnel carries, where that is less.
    fn too_large(&self, vip: IpAddr, seen: &Seen) -> Option<(u16, u16)> {
        let announced = seen.ports.values().filter_map(|port| port.announced).max()?;
        let carries = *self.standing.carries.get(&Version::of(vip))?;
        (announced > carries).then_some((announced, carries))
    }
}

#[cfg(test)]
mod tests {
    use super::super::evidence::Carried;
    use super::*;
    use proptest::prelude::*;

    const PORT: u16 = 7706;

    fn vip() -> IpAddr {
        [198, 51, 100, 10].into()
    }

    fn standing() -> Standing {
        Standing { carries: [(Version::V4, 1440)].into(), port: PORT, ..Standing::default() }
    }

    /// All is well.
    fn whole() -> Seen {
        let port =
            Connecting { asked: 1, accepted: 1, refused: 0, opened: 9, announced: Some(1440) };
        let carried = Carried { asked: 1, done: 1 };
        Seen {
            arrived: 20,
            unwrapped: 20,
            ports: [(5432, port), (PORT, port)].into(),
            download: carried,
            upload: carried,
            ..Seen::default()
        }
    }

    fn names(seen: Seen, drops: u64, standing: &Standing) -> Vec<&'static str> {
        let vips = [(vip(), seen)].into();
        let evidence = Evidence { vips, reverse_path_drops: drops, missed: 0 };
        let findings = judge(&evidence, standing);
        for finding in findings.iter().filter(|finding| finding.severity == Severity::Error) {
            let words = [&finding.observed, &finding.expected, &finding.meaning, &finding.mend];
            assert!(words.iter().all(|word| !word.is_empty()), "{finding:?}");
        }
        findings.iter().filter(|f| f.severity == Severity::Error).map(|f| f.name).collect()
    }

    #[test]
    fn each_place_where_probes_are_lost_has_its_name() {
        type Spoil = fn(&mut Seen, &mut Standing) -> u64;
        let cases: [(Spoil, &[&str]); 22] = [
            (|_, _| 0, &[]),
            // What others have dropped does not matter where everything came.
            (
                |_, s| {
                    s.filters.insert("eth1".into());
                    7
                },
                &[],
            ),
            (
                |seen, _| {
                    *seen = Seen::default();
                    0
                },
                &["live_never_arrives"],
            ),
            (
                |seen, _| {
                    *seen = Seen { others: 5, ..Seen::default() };
                    0
                },
                &["live_not_probed"],
            ),
            (
                |seen, _| {
                    let strangers = [[10, 9, 9, 9].into()].into();
                    *seen = Seen { strangers, ..Seen::default() };
                    0
                },
                &["live_not_director"],
            ),
            (
                |seen, s| {
                    *seen = Seen { arrived: 3, ..Seen::default() };
                    s.devices.push("tunl0 down".into());
                    0
                },
                &["live_not_unwrapped"],
            ),
            // The device is there, and not for this kind.
            (
                |seen, _| {
                    *seen = Seen { arrived: 3, refused: 1, ..Seen::default() };
                    0
                },
                &["live_not_unwrapped"],
            ),
            (
                |seen, _| {
                    *seen = Seen { arrived: 3, ..Seen::default() };
                    0
                },
                &["live_firewall"],
            ),
            (
                |seen, s| {
                    *seen = Seen { arrived: 3, ..Seen::default() };
                    s.filters.insert("eth0".into());
                    4
                },
                &["live_rp_filter"],
            ),
            (
                |seen, s| {
                    *seen = Seen { arrived: 3, ..Seen::default() };
                    s.firewalls.push("chain inet filter input drops protocol 4".into());
                    0
                },
                &["live_firewall"],
            ),
            (
                |seen, s| {
                    spoil_answers(seen);
                    s.missing.insert(vip());
                    0
                },
                &["live_vip_missing"],
            ),
            (
                |seen, s| {
                    spoil_answers(seen);
                    s.filters.insert("tunl0".into());
                    4
                },
                &["live_rp_filter"],
            ),
            // Others' packets were dropped, and none of ours could be.
            (
                |seen, _| {
                    spoil_answers(seen);
                    4
                },
                &["live_no_answer", "live_no_answer"],
            ),
            (
                |seen, s| {
                    spoil_answers(seen);
                    s.filters.insert("tunl0".into());
                    0
                },
                &["live_no_answer", "live_no_answer"],
            ),
            (
                |seen, _| {
                    let port = Connecting { asked: 3, refused: 3, ..Connecting::default() };
                    seen.ports.insert(5432, port);
                    0
                },
                &["live_nobody_listens"],
            ),
            (
                |seen, _| {
                    for port in seen.ports.values_mut() {
                        *port = Connecting { asked: 1, accepted: 3, ..Connecting::default() };
                    }
                    (seen.download, seen.upload) = (Carried::default(), Carried::default());
                    0
                },
                &["live_reply_lost", "live_reply_lost"],
            ),
            (
                |seen, _| {
                    seen.download.done = 0;
                    seen.repeated = 3;
                    0
                },
                &["live_reply_too_large"],
            ),
            (
                |seen, _| {
                    seen.download.done = 0;
                    0
                },
                &["live_unfinished"],
            ),
            (
                |seen, _| {
                    seen.upload.done = 0;
                    0
                },
                &["live_path_narrow"],
            ),
            (
                |seen, s| {
                    seen.upload.done = 0;
                    s.carries.insert(Version::V4, 1360);
                    0
                },
                &["live_segment_size"],
            ),
            (
                |seen, _| {
                    seen.arp_replies = 1;
                    0
                },
                &["live_arp_leak"],
            ),
            (
                |seen, _| {
                    seen.ports.remove(&PORT);
                    (seen.download, seen.upload) = (Carried::default(), Carried::default());
                    0
                },
                &["live_not_asked"],
            ),
        ];
        for (at, (spoil, expected)) in cases.into_iter().enumerate() {
            let (mut seen, mut standing) = (whole(), standing());
            let drops = spoil(&mut seen, &mut standing);
            assert_eq!(names(seen, drops, &standing), expected, "case {at}");
        }
    }

    /// Probes are unwrapped, and nothing is answered.
    fn spoil_answers(seen: &mut Seen) {
        let port = Connecting { asked: 3, ..Connecting::default() };
        let ports = [(5432, port), (PORT, port)].into();
        *seen = Seen { arrived: 6, unwrapped: 6, ports, ..Seen::default() };
    }

    #[test]
    fn a_vip_that_was_not_tried_is_told_from_one_that_is_cut_off() {
        let other: IpAddr = [198, 51, 100, 11].into();
        let other6: IpAddr = "2001:db8:100::10".parse().unwrap();
        let vips = [(vip(), whole()), (other, Seen::default()), (other6, Seen::default())].into();
        let evidence = Evidence { vips, missed: 2, ..Evidence::default() };
        let findings = judge(&evidence, &standing());
        let names: Vec<_> = findings.iter().map(|finding| finding.name).collect();
        // By IPv6 nothing came at all: its tunnel has another protocol, which may be filtered.
        assert_eq!(
            names,
            ["live_exchange", "live_not_probed", "live_never_arrives", "live_missed"]
        );
    }

    #[test]
    fn what_is_not_a_fault_is_said_and_no_error() {
        let mut seen = whole();
        seen.ports.remove(&5432);
        seen.ports.get_mut(&PORT).unwrap().announced = Some(1460);
        let evidence = Evidence { vips: [(vip(), seen)].into(), ..Evidence::default() };
        let findings = judge(&evidence, &standing());
        let said: Vec<_> = findings.iter().map(|f| (f.name, f.severity)).collect();
        assert_eq!(
            said,
            [
                ("live_exchange", Severity::Ok),
                ("live_service", Severity::Note),
                ("live_segment_size", Severity::Warning)
            ]
        );
    }

    fn few() -> impl Strategy<Value = u64> {
        prop_oneof![3 => Just(0u64), 2 => 1..3u64]
    }

    prop_compose! {
        fn any_port()(
            asked in few(), accepted in few(), refused in few(), opened in few(),
            announced in prop_oneof![Just(None), Just(Some(1360)), Just(Some(1460))],
        ) -> Connecting {
            Connecting { asked, accepted, refused, opened, announced }
        }
    }

    prop_compose! {
        fn any_seen()(
            counts in proptest::array::uniform6(few()),
            done in proptest::array::uniform4(few()),
            strangers in proptest::option::of(Just(IpAddr::from([10, 9, 9, 9]))),
            ports in proptest::collection::btree_map(
                prop_oneof![Just(PORT), Just(5432), Just(80)], any_port(), 0..3),
        ) -> Seen {
            let [arrived, others, refused, unwrapped, arp_replies, repeated] = counts;
            Seen {
                arrived, others, refused, unwrapped, arp_replies, repeated, ports,
                strangers: strangers.into_iter().collect(),
                download: Carried { asked: done[0], done: done[1] },
                upload: Carried { asked: done[2], done: done[3] },
            }
        }
    }

    prop_compose! {
        fn any_standing()(
            device in any::<bool>(), firewall in any::<bool>(), missing in any::<bool>(), filter in any::<bool>(),
            carries in proptest::option::of(1300..1500u16),
        ) -> Standing {
            let some = |is: bool| is.then(|| "tunl0".to_owned());
            Standing {
                devices: some(device).into_iter().collect(),
                firewalls: some(firewall).into_iter().collect(),
                missing: missing.then(vip).into_iter().collect(),
                filters: some(filter).into_iter().collect(),
                carries: carries.map(|size| (Version::V4, size)).into_iter().collect(),
                port: PORT,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn nothing_is_fine_unless_a_whole_exchange_was_seen(
            seen in proptest::collection::vec(any_seen(), 0..3),
            drops in few(), missed in few(),
            standing in any_standing(),
        ) {
            let vips: BTreeMap<IpAddr, Seen> =
                (10..).map(|last| IpAddr::from([198, 51, 100, last])).zip(seen).collect();
            // Written anew, not asked of the code: bytes both ways, and no service that was tried in vain.
            let whole = !vips.is_empty() && vips.values().all(|seen| {
                let reached = |(port, c): (&u16, &Connecting)| *port == PORT || c.asked == 0 || c.opened > 0;
                seen.download.done >= 1 && seen.upload.done >= 1 && seen.ports.iter().all(reached)
            });
            let leaks = vips.values().any(|seen| seen.arp_replies > 0);
            let evidence = Evidence { vips, reverse_path_drops: drops, missed };
            let findings = judge(&evidence, &standing);
            prop_assert_eq!(crate::verify::is_fine(&findings), whole && !leaks, "{:#?}", findings);
        }
    }
}
