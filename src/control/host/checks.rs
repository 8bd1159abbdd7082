//! What on this host stands in the way of health checks. Pure: facts in, findings out.

use super::observe::HostFacts;
use crate::control::config::{Capture, Config, Service};
use crate::control::finding::Finding;
use std::net::IpAddr;

/// What a host has to do with checks.
#[derive(Debug, Clone, Default)]
pub struct CheckFacts {
    /// Devices that lead to real servers, with their effective `rp_filter`.
    pub ways: Vec<(String, u8)>,
    /// `net.ipv4.ip_local_port_range`
    pub local_ports: Option<(u16, u16)>,
    /// `net.ipv4.ip_local_reserved_ports`
    pub reserved_ports: Vec<(u16, u16)>,
}

/// Findings about the checks of a configuration; none where nothing is checked.
pub(super) fn judge(config: &Config, facts: &HostFacts, findings: &mut Vec<Finding>) {
    let checked: Vec<&Service> = config.services.iter().filter(|s| s.check.is_some()).collect();
    if checked.is_empty() {
        return;
    }
    if checked.iter().any(|service| service.vip.is_ipv4()) {
        reverse_path(&facts.checks, findings);
    }
    ports(config, &facts.checks, findings);
    let mut vips: Vec<IpAddr> = checked.iter().map(|service| service.vip.address()).collect();
    vips.dedup();
    for vip in vips {
        findings.extend(way_to_vip(config, facts, vip));
    }
}

/// Answers come in where real servers are, from an address that is routed to the TAP.
fn reverse_path(facts: &CheckFacts, findings: &mut Vec<Finding>) {
    for (device, _) in facts.ways.iter().filter(|(_, filter)| *filter == 1) {
        findings.push(Finding::error(
            format!("strict reverse path filtering on {device} drops the answers to health checks"),
            format!(
                "they come from the VIP, which is routed elsewhere; the larger of `all` and the \
                 interface's own value counts:\n\
                 sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.{device}.rp_filter=2"
            ),
        ));
    }
}

fn ports(config: &Config, facts: &CheckFacts, findings: &mut Vec<Finding>) {
    let (first, last) = config.health.ports;
    let Some((low, high)) = facts.local_ports else { return };
    let shared = (first.max(low), last.min(high));
    let reserved = |port: u16| facts.reserved_ports.iter().any(|(a, b)| (*a..=*b).contains(&port));
    if shared.0 > shared.1 || (shared.0..=shared.1).all(reserved) {
        return;
    }
    findings.push(Finding::warning(
        format!("other programs of this host may take the ports of health checks, {first}-{last}"),
        format!(
            "a check whose port is taken is not made: keep them free (other programs use \
             {low}-{high}), or give `ports` in [health] others:\n\
             sysctl -w net.ipv4.ip_local_reserved_ports={first}-{last}"
        ),
    ));
}

/// Where the operator leads packets to the TAP, those of this host may go elsewhere.
fn way_to_vip(config: &Config, facts: &HostFacts, vip: IpAddr) -> Option<Finding> {
    let (_, route) = facts.vip_routes.iter().find(|(known, _)| *known == vip)?;
    let director = &config.director;
    let length = if vip.is_ipv4() { 32 } else { 128 };
    let (device, wanted) = match director.capture {
        // Adit's own routes, which are looked after while it runs.
        Capture::Route => return None,
        Capture::Manual => (facts.tap.as_ref()?.index, &director.tap),
        Capture::Bridge => (facts.interface.as_ref()?.index, &director.interface),
    };
    // A router would bring it back with a lower hop limit, for anybody's packet.
    if route.interface == Some(device) && route.gateway.is_none() {
        return None;
    }
    Some(Finding::error(
        format!("health checks of the VIP {vip} do not go to the TAP"),
        format!(
            "this host's own packets to it leave by another way, so that all its real servers would \
             be taken for dead:\nip route add {vip}/{length} dev {wanted}"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse;
    use crate::control::finding::Severity;
    use crate::control::netlink::links::Link;
    use crate::control::netlink::routes::{Route, RouteKind};

    fn config(capture: &str, check: &str) -> Config {
        let text = format!(
            "[director]\ninterface = \"eth0\"\ncapture = \"{capture}\"\n[[service]]\nname = \"db\"\n\
             vip = \"192.0.2.1\"\nport = 5432\n{check}\n"
        );
        parse(&text, "t").unwrap()
    }

    const CHECK: &str = "check = { kind = \"tcp\" }";

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            mtu: 1500,
            ethernet: true,
            mac: None,
            up: true,
            is_bridge: false,
            controller: None,
            in_bridge: false,
            tx_dropped: 0,
        }
    }

    fn good() -> HostFacts {
        let route = Route {
            kind: RouteKind::Unicast,
            interface: Some(3),
            gateway: None,
            source: None,
            mtu: None,
            encapsulates: false,
        };
        HostFacts {
            interface: Some(link(2, "eth0")),
            tap: Some(link(3, "adit0")),
            vip_routes: vec![([192, 0, 2, 1].into(), route)],
            checks: CheckFacts {
                ways: vec![("eth1".into(), 2)],
                local_ports: Some((32_768, 60_999)),
                reserved_ports: Vec::new(),
            },
            ..HostFacts::default()
        }
    }

    fn found(config: &Config, facts: &HostFacts) -> Vec<Finding> {
        let mut findings = Vec::new();
        judge(config, facts, &mut findings);
        findings
    }

    #[test]
    fn each_obstacle_is_named_where_something_is_checked() {
        type Spoil = fn(&mut HostFacts);
        let manual = config("manual", CHECK);
        assert_eq!(found(&manual, &good()), []);
        let cases: [(Spoil, Severity, &str); 5] = [
            (|f| f.checks.ways[0].1 = 1, Severity::Error, "filtering on eth1"),
            (|f| f.checks.local_ports = Some((1024, 65_000)), Severity::Warning, "61000-65535"),
            (
                |f| {
                    f.checks.local_ports = Some((1024, 65_000));
                    f.checks.reserved_ports = vec![(1, 2), (61_000, 64_999)];
                },
                Severity::Warning,
                "61000-65535",
            ),
            (|f| f.vip_routes[0].1.interface = Some(2), Severity::Error, "VIP 192.0.2.1"),
            (
                |f| f.vip_routes[0].1.gateway = Some([10, 0, 0, 1].into()),
                Severity::Error,
                "VIP 192.0.2.1",
            ),
        ];
        for (spoil, severity, word) in cases {
            let mut facts = good();
            spoil(&mut facts);
            let findings = found(&manual, &facts);
            assert_eq!(findings.len(), 1, "{word}: {findings:?}");
            assert_eq!(findings[0].severity, severity, "{word}");
            assert!(findings[0].message.contains(word), "{findings:?}");
            assert_eq!(found(&config("manual", ""), &facts), [], "nothing is checked");
        }
        let mut reserved = good();
        reserved.checks.local_ports = Some((1024, 65_000));
        reserved.checks.reserved_ports = vec![(60_000, 65_535)];
        assert_eq!(found(&manual, &reserved), []);
        // On a bridge the VIP is on the link of the bridge.
        assert_eq!(found(&config("bridge", CHECK), &good()).len(), 1);
        assert_eq!(found(&config("route", CHECK), &good()), []);
    }
}
