//! `[health]`, and `check` of a service.

use super::limits;
use super::reader::{At, Problems, Table, Word};
use super::service::{Placed, not_unicast};
use super::types::{Check, CheckKind, Health, Initial, Ports, Protocol};
use std::net::IpAddr;
use std::time::Duration;

/// `[health]`: what checks of all services have in common.
pub(super) fn health(table: Option<Table<'_>>, problems: &Problems) -> Health {
    let mut health = Health::default();
    let Some(mut t) = table else { return health };
    if let Some(ports) = t.parsed("ports", port_range) {
        health.ports = ports.value;
    }
    for source in t.addresses("source") {
        let refused = |message: String, help: &str| problems.at(source.span.clone(), message, help);
        if let Some(reason) = not_unicast(source.value) {
            refused(
                format!("`source` {} is {reason}", source.value),
                "an address of this host that real servers can answer to",
            );
            continue;
        }
        let twice = match source.value {
            IpAddr::V4(v4) => health.source_v4.replace(v4).is_some(),
            IpAddr::V6(v6) => health.source_v6.replace(v6).is_some(),
        };
        if twice {
            refused(
                "a second `source` of the same family".to_owned(),
                "name one IPv4 and one IPv6 address at most",
            );
        }
    }
    t.finish();
    health
}

fn port_range(text: &str) -> Result<(u16, u16), (String, String)> {
    let wrong = || {
        let help = "first and last port, such as \"61000-65535\", 1024 or above: outside of \
                    net.ipv4.ip_local_port_range";
        (format!("`ports` = \"{text}\" is not a range of ports"), help.to_owned())
    };
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let number = |side: &str| side.trim().parse::<u16>().map_err(|_| wrong());
    let (first, last) = (number(first)?, number(last)?);
    let holds_one = last.saturating_sub(first) >= limits::PROBE_PORTS - 1;
    if first >= 1024 && first <= last && holds_one { Ok((first, last)) } else { Err(wrong()) }
}

/// `check` of a service, as it stands there: the port may be the service's.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawCheck {
    kind: CheckKind,
    port: Option<u16>,
    interval: Duration,
    timeout: Duration,
    down_interval: Duration,
    rise: u8,
    fall: u8,
    initial: Initial,
}

pub(super) fn read(mut t: Table<'_>, problems: &Problems) -> RawCheck {
    let kind = t.word("kind", &[Word::Is("tcp", CheckKind::Tcp)]);
    if kind.is_none() && t.get("kind").is_none() {
        t.missing("kind", "kind = \"tcp\"");
    }
    let port = t.integer("port", &(1..=65_535u16), "the VIP's port that is connected to");
    let interval = t.short_duration("interval", &limits::CHECK_INTERVAL);
    let interval = interval.unwrap_or(limits::CHECK_INTERVAL.default);
    let given = t.short_duration("timeout", &limits::CHECK_TIMEOUT);
    // Who looks more often than that means to wait no longer.
    let timeout = given.unwrap_or(limits::CHECK_TIMEOUT.default.min(interval));
    if timeout > interval {
        problems.at(
            t.get("timeout").map(toml::Spanned::span).unwrap_or_default(),
            "`timeout` is longer than `interval`",
            "a check that hangs would delay the next one: make it as long at most",
        );
    }
    let given = t.short_duration("down_interval", &limits::CHECK_DOWN_INTERVAL);
    let down_interval = given.unwrap_or(limits::CHECK_DOWN_INTERVAL.default.max(interval));
    let rise = t.integer("rise", &limits::CHECK_STREAK, "checks in a row that bring it back");
    let fall = t.integer("fall", &limits::CHECK_STREAK, "failed checks in a row that take it out");
    let initial =
        t.word("initial", &[Word::Is("down", Initial::Down), Word::Is("up", Initial::Up)]);
    t.finish();
    RawCheck {
        kind: kind.unwrap_or(CheckKind::Tcp),
        port,
        interval,
        timeout,
        down_interval,
        rise: rise.unwrap_or(limits::DEFAULT_RISE),
        fall: fall.unwrap_or(limits::DEFAULT_FALL),
        initial: initial.unwrap_or(Initial::Down),
    }
}

/// The check of a service of these ports. `None`, and said why, where it needs a `port`.
pub(super) fn complete(
    raw: &At<RawCheck>,
    ports: &Ports,
    protocol: Protocol,
    problems: &Problems,
) -> Option<Check> {
    let own = match (protocol, ports) {
        (Protocol::Tcp, Ports::Exact(port) | Ports::Range(port, _)) => Some(*port),
        (Protocol::Tcp, Ports::List(ports)) => ports.first().copied(),
        (Protocol::Tcp, Ports::Any) | (Protocol::Udp, _) => None,
    };
    let RawCheck { kind, port, interval, timeout, down_interval, rise, fall, initial } = raw.value;
    let Some(port) = port.or(own) else {
        let what = match protocol {
            Protocol::Udp => "a service of UDP",
            Protocol::Tcp => "a service of every port",
        };
        problems.at(
            raw.span.clone(),
            format!("`check` of {what} has no `port`"),
            "a TCP port of the VIP that its real servers listen on: check = { kind = \"tcp\", port = \
             5432 }",
        );
        return None;
    };
    Some(Check { kind, port, interval, timeout, down_interval, rise, fall, initial })
}

/// Whether there is an address to check from and a block of ports for each real server.
pub(super) fn fits(services: &[Placed], health: &Health, problems: &Problems) {
    let blocks = health.blocks();
    let mut used: std::collections::HashMap<(IpAddr, u16), usize> = Default::default();
    for placed in services {
        let service = &placed.service;
        let Some(check) = &service.check else { continue };
        let source = match service.vip.address() {
            IpAddr::V4(_) => health.source_v4.is_some(),
            IpAddr::V6(_) => health.source_v6.is_some(),
        };
        let other = |real: &super::Real| real.address.is_ipv4() != service.vip.is_ipv4();
        if !source && service.reals.iter().any(other) {
            let family = if service.vip.is_ipv4() { "IPv4" } else { "IPv6" };
            problems.at(
                placed.vip.clone(),
                format!(
                    "service {}: no {family} address to check its real servers from",
                    service.name
                ),
                format!(
                    "the way to them has the other family's: name an {family} address of this host \
                     that they can answer to, as `source` in [health]"
                ),
            );
        }
        let used = used.entry((service.vip.address(), check.port)).or_default();
        *used += service.reals.len();
        if *used > blocks {
            problems.at(
                placed.ports.clone(),
                format!(
                    "{used} real servers are checked at {} port {}, and there are ports for {blocks}",
                    service.vip, check.port
                ),
                format!(
                    "each takes {} of `ports` in [health] ({}-{}): widen them",
                    limits::PROBE_PORTS,
                    health.ports.0,
                    health.ports.1
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::control::config::{Check, CheckKind, Config, Initial, config_hash, parse};
    use std::time::Duration;

    const HEAD: &str = "[director]\ninterface = \"eth0\"\n";

    fn service(key: &str, more: &str) -> String {
        format!(
            "{HEAD}[[service]]\nname = \"db\"\nvip = \"192.0.2.1\"\n{key}\n{more}\n\
             [[service.real]]\naddress = \"10.0.0.1\"\n[[service.real]]\naddress = \"10.0.0.2\"\n"
        )
    }

    fn check(key: &str, check: &str) -> Check {
        let config: Config = parse(&service(key, &format!("check = {check}")), "t").unwrap();
        config.services[0].check.unwrap()
    }

    #[test]
    fn what_is_not_said_has_its_default_and_the_port_is_the_services() {
        let plain = check("port = 5432", "{ kind = \"tcp\" }");
        let seconds = Duration::from_secs;
        let expected = Check {
            kind: CheckKind::Tcp,
            port: 5432,
            interval: seconds(2),
            timeout: seconds(1),
            down_interval: seconds(5),
            rise: 2,
            fall: 3,
            initial: Initial::Down,
        };
        assert_eq!(plain, expected);
        let quick = check("port = [80, 79]", "{ kind = \"tcp\", interval = \"250ms\" }");
        assert_eq!((quick.port, quick.timeout), (79, Duration::from_millis(250)));
        let slow = check("port = \"6000-6009\"", "{ kind = \"tcp\", interval = \"1m\" }");
        assert_eq!((slow.port, slow.down_interval), (6000, seconds(60)));
        let all = "{ kind = \"tcp\", port = 9, interval = \"3s\", timeout = \"20ms\", rise = 1, \
                   fall = 100, down_interval = \"1h\", initial = \"up\" }";
        for key in ["port = \"any\"", "port = 1\nprotocol = \"udp\""] {
            let all = check(key, all);
            assert_eq!((all.port, all.rise, all.fall, all.initial), (9, 1, 100, Initial::Up));
            assert_eq!(
                (all.timeout, all.down_interval),
                (Duration::from_millis(20), seconds(3600))
            );
        }
    }

    #[test]
    fn refusals_name_the_place_and_what_is_right() {
        let health = |text: &str| {
            service("port = 1", "").replace(HEAD, &format!("{HEAD}[health]\n{text}\n"))
        };
        let of = |key: &str, check: &str| service(key, &format!("check = {check}"));
        let cases = [
            (of("port = 1", "{}"), "`check` has no `kind`"),
            (of("port = 1", "{ kind = \"postgres\" }"), "`kind` cannot be \"postgres\""),
            (of("port = 1", "\"tcp\""), "`check` is a string"),
            (
                of("port = \"any\"", "{ kind = \"tcp\" }"),
                "`check` of a service of every port has no `port`",
            ),
            (
                of("port = 1\nprotocol = \"udp\"", "{ kind = \"tcp\" }"),
                "a service of UDP has no `port`",
            ),
            (of("port = 1", "{ kind = \"tcp\", interval = 2 }"), "`interval` = 2 has no unit"),
            (
                of("port = 1", "{ kind = \"tcp\", interval = \"1ms\" }"),
                "`interval` = 1ms is out of range",
            ),
            (
                of("port = 1", "{ kind = \"tcp\", timeout = \"100us\" }"),
                "`timeout` = 100us is out of range",
            ),
            (
                of("port = 1", "{ kind = \"tcp\", timeout = \"10500us\" }"),
                "whole number of milliseconds",
            ),
            (
                of("port = 1", "{ kind = \"tcp\", timeout = \"3s\" }"),
                "`timeout` is longer than `interval`",
            ),
            (of("port = 1", "{ kind = \"tcp\", rise = 0 }"), "`rise` = 0 is out of range"),
            (of("port = 1", "{ kind = \"tcp\", fal = 2 }"), "unknown key `fal`"),
            (of("port = 1", "{ kind = \"tcp\", initial = \"unknown\" }"), "`initial` cannot be"),
            (health("ports = \"80-90\""), "not a range of ports"),
            (health("ports = \"5000-5002\""), "not a range of ports"),
            (health("ports = \"6000-5000\""), "not a range of ports"),
            (
                health("source = [\"10.0.0.5\", \"10.0.0.6\"]"),
                "a second `source` of the same family",
            ),
            (health("source = [\"127.0.0.1\"]"), "a loopback address"),
            (
                of("port = 1", "{ kind = \"tcp\" }")
                    .replace(HEAD, &format!("{HEAD}[health]\nports = \"5000-5006\"\n")),
                "2 real servers are checked at 192.0.2.1 port 1, and there are ports for 1",
            ),
            (
                of("port = 1", "{ kind = \"tcp\" }").replace("192.0.2.1", "2001:db8::1"),
                "no IPv6 address to check its real servers from",
            ),
        ];
        for (text, expected) in cases {
            let Err(errors) = parse(&text, "t") else { panic!("it was taken:\n{text}") };
            let said = errors.render(crate::control::config::RenderStyle::Plain);
            assert_eq!(errors.problems().len(), 1, "{said}");
            assert!(errors.problems()[0].message.contains(expected), "no `{expected}` in {said}");
        }
        let mixed = of("port = 1", "{ kind = \"tcp\" }").replace("192.0.2.1", "2001:db8::1");
        let source = format!("{HEAD}[health]\nsource = [\"2001:db8::5\"]\n");
        assert!(parse(&mixed.replace(HEAD, &source), "t").is_ok());
    }

    #[test]
    fn the_hash_sees_checks_and_not_that_there_could_be_some() {
        let hash = |text: String| config_hash(&parse(&text, "t").unwrap());
        let without = hash(service("port = 1", ""));
        let defaults = format!("{HEAD}[health]\nports = \"61000-65535\"\n");
        assert_eq!(hash(service("port = 1", "").replace(HEAD, &defaults)), without);
        let other = defaults.replace("61000", "62000");
        assert_ne!(hash(service("port = 1", "").replace(HEAD, &other)), without);
        let checked = hash(service("port = 1", "check = { kind = \"tcp\" }"));
        assert_ne!(checked, without);
        assert_ne!(
            hash(service("port = 1", "check = { kind = \"tcp\", timeout = \"999ms\" }")),
            checked
        );
    }
}
