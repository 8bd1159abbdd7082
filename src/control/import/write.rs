//! The configuration as text, laid out as the example in `packaging/` is.

use super::draft::{Settled, SettledReal, Timeouts};
use super::report::visible;
use super::{Options, Source};
use crate::control::config::{CHECK_DOWN_INTERVAL, Check, Initial, Protocol, Real, RealTunnel};
use std::fmt::Write as _;
use std::time::Duration;

/// What there is to write.
pub(super) struct Written<'a> {
    pub(super) source: Source,
    pub(super) file: &'a str,
    pub(super) timeouts: Timeouts,
    pub(super) services: &'a [Settled],
    /// The report, where it is to stand in the configuration.
    pub(super) report: Option<&'a str>,
}

/// The configuration's text. Without an interface its line is a comment that is to be filled in.
pub(super) fn config(written: &Written<'_>, options: &Options) -> String {
    let file = visible(written.file);
    let mut out = format!(
        "# Imported from {file} by `adit import {}`. Look through the import's report, then: adit check\n",
        written.source.name()
    );
    if let Some(report) = written.report {
        out.push('\n');
        commented(&mut out, report);
    }
    director(&mut out, options);
    timeouts(&mut out, &written.timeouts);
    for service in written.services {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "\n# {file}:{}", service.line);
        let text = service_text(service);
        if service.commented {
            out.push_str("# Left out, as it has no real server that could be imported:\n");
            commented(&mut out, &text);
        } else {
            out.push_str(&text);
        }
    }
    out
}

/// Lines as comments.
fn commented(out: &mut String, text: &str) {
    for line in text.lines() {
        out.push('#');
        if !line.is_empty() {
            out.push(' ');
            out.push_str(line);
        }
        out.push('\n');
    }
}

fn director(out: &mut String, options: &Options) {
    out.push_str("\n[director]\n");
    match &options.interface {
        Some(name) => {
            let line = format!("interface = \"{name}\"");
            let _ = writeln!(out, "{line:<29} # faces the clients");
        }
        None => out.push_str(
            "# interface = \"eth0\"          # faces the clients: name it and take the first `#` away\n",
        ),
    }
    out.push_str(
        "# hash_key_file = \"/etc/adit/hash.key\"   # the same on every director: openssl rand -hex 16\n",
    );
}

fn timeouts(out: &mut String, timeouts: &Timeouts) {
    let named =
        [("tcp_established", timeouts.tcp), ("tcp_fin", timeouts.tcp_fin), ("udp", timeouts.udp)];
    if named.iter().all(|(_, timeout)| timeout.is_none()) {
        return;
    }
    out.push_str("\n[timeouts]\n");
    for (name, timeout) in named {
        if let Some(timeout) = timeout {
            let _ = writeln!(out, "{name} = \"{}\"", duration(timeout));
        }
    }
}

fn service_text(service: &Settled) -> String {
    let mut out = String::from("[[service]]\n");
    let port = service.port.map_or_else(|| "\"any\"".to_owned(), |port| port.to_string());
    let _ = writeln!(out, "name = \"{}\"", service.name);
    let _ = writeln!(out, "vip = \"{}\"", service.vip);
    let _ = writeln!(out, "port = {port}");
    let _ = writeln!(out, "protocol = \"{}\"", service.protocol);
    let _ = writeln!(out, "scheduler = \"{}\"", service.scheduler.kind);
    if !service.scheduler.flags.is_empty() {
        let flags: Vec<_> =
            service.scheduler.flags.iter().map(|flag| format!("\"{flag}\"")).collect();
        let _ = writeln!(out, "scheduler_flags = [{}]", flags.join(", "));
    }
    if service.one_packet {
        out.push_str("one_packet = true\n");
    }
    if let Some(persistence) = &service.persistence {
        let family = if service.vip.is_ipv4() { "ipv4_prefix" } else { "ipv6_prefix" };
        let _ = writeln!(
            out,
            "persistence = {{ timeout = \"{}\", {family} = {} }}",
            duration(persistence.timeout),
            persistence.prefix
        );
    }
    if let Some(check) = &service.check {
        let own = service.port.filter(|_| service.protocol == Protocol::Tcp);
        let _ = writeln!(out, "check = {}", check_value(check, own));
    }
    for real in &service.reals {
        out.push('\n');
        match real.commented {
            Some(why) => {
                let _ = writeln!(out, "# {why}");
                commented(&mut out, &real_text(real));
            }
            None => out.push_str(&real_text(real)),
        }
    }
    out
}

/// `check` of a service whose own port is what is connected to unless it is said.
fn check_value(check: &Check, own: Option<u16>) -> String {
    let mut out = String::from("{ kind = \"tcp\"");
    let mut key = |name: &str, value: String| {
        let _ = write!(out, ", {name} = {value}");
    };
    if own != Some(check.port) {
        key("port", check.port.to_string());
    }
    let quoted = |time: Duration| format!("\"{}\"", duration(time));
    key("interval", quoted(check.interval));
    key("timeout", quoted(check.timeout));
    key("rise", check.rise.to_string());
    key("fall", check.fall.to_string());
    if check.down_interval != CHECK_DOWN_INTERVAL.default.max(check.interval) {
        key("down_interval", quoted(check.down_interval));
    }
    let initial = match check.initial {
        Initial::Down => "down",
        Initial::Up => "up",
    };
    key("initial", format!("\"{initial}\""));
    out.push_str(" }");
    out
}

fn real_text(real: &SettledReal) -> String {
    let SettledReal { address, weight, thresholds, tunnel, .. } = real;
    let mut out = format!("[[service.real]]\naddress = \"{address}\"\nweight = {weight}\n");
    let bounds = [
        ("max_connections", thresholds.max_connections),
        ("min_connections", thresholds.min_connections),
    ];
    for (key, bound) in bounds {
        if let Some(bound) = bound {
            let _ = writeln!(out, "{key} = {bound}");
        }
    }
    if let Some(tunnel) = tunnel_value(*tunnel) {
        let _ = writeln!(out, "tunnel = {tunnel}");
    }
    out
}

/// `tunnel` of a real server; `None` for the default.
fn tunnel_value(tunnel: RealTunnel) -> Option<String> {
    Some(match tunnel {
        RealTunnel::Ipip => return None,
        RealTunnel::Gre { checksum: false } => "\"gre\"".to_owned(),
        RealTunnel::Gre { checksum: true } => "{ kind = \"gre\", checksum = true }".to_owned(),
        RealTunnel::Gue { port, checksum } => {
            format!("{{ kind = \"gue\", port = {port}, checksum = {checksum} }}")
        }
        RealTunnel::Direct => "\"direct\"".to_owned(),
    })
}

/// In the largest units, down to milliseconds, without spaces: `2h15m`.
fn duration(duration: Duration) -> String {
    let mut seconds = duration.as_secs();
    let mut text = String::new();
    for (unit, length) in [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)] {
        if seconds >= length {
            let _ = write!(text, "{}{unit}", seconds / length);
            seconds %= length;
        }
    }
    if duration.subsec_millis() > 0 {
        let _ = write!(text, "{}ms", duration.subsec_millis());
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// The real servers of a service that are not comments, as the configuration must come back with
/// them.
pub(super) fn expected(service: &Settled) -> Vec<Real> {
    let active = service.reals.iter().filter(|real| real.commented.is_none());
    let mut reals: Vec<Real> = active
        .map(|real| Real {
            address: real.address,
            weight: real.weight,
            max_connections: real.thresholds.max_connections,
            min_connections: real.thresholds.min_connections,
            tunnel: real.tunnel,
        })
        .collect();
    reals.sort_unstable_by_key(|real| real.address);
    reals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_back() {
        for seconds in [1, 59, 60, 61, 600, 3600, 8100, 86_400, 90_061, 2_592_000] {
            let text = duration(Duration::from_secs(seconds));
            let back = humantime::parse_duration(&text).unwrap();
            assert_eq!(back.as_secs(), seconds, "{text}");
        }
        for milliseconds in [1, 10, 999, 1500, 60_001, 3_600_500] {
            let text = duration(Duration::from_millis(milliseconds));
            let back = humantime::parse_duration(&text).unwrap();
            assert_eq!(back, Duration::from_millis(milliseconds), "{text}");
        }
        assert_eq!(duration(Duration::from_secs(8100)), "2h15m");
    }
}
