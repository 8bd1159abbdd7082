//! `[director]`, `[tunnel]`, `[timeouts]` and `[limits]`.

use super::check;
use super::conflicts;
use super::limits::{self, DurationBounds};
use super::reader::{At, Problems, Table, Word};
use super::service;
use super::types::{
    Announce, Capture, Config, Director, DontFragment, IoEngine, Limits, Timeouts, Tunnel,
    TunnelKind,
};
use crate::dataplane::rate_limit::RateLimits;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Reads the whole document. `None` where something without which nothing else makes sense is
/// missing; problems say what.
pub(super) fn read<'t>(mut root: Table<'t>, problems: &'t Problems) -> Option<Config> {
    let director = match root.table("director", "[director]") {
        Some(table) => director(table, problems),
        None => {
            root.missing("[director]", "[director]\ninterface = \"eth0\"");
            None
        }
    };
    let (tunnel, df) = tunnel(root.table("tunnel", "[tunnel]"), problems);
    let timeouts = timeouts(root.table("timeouts", "[timeouts]"), &default_timeouts());
    let limits = limits(root.table("limits", "[limits]"));
    let defaults = service::Defaults { timeouts, df };
    let health = check::health(root.table("health", "[health]"), problems);
    let services = service::read_all(root.tables("service", "[[service]]"), &defaults, problems);
    root.finish();

    conflicts::check(&services, &tunnel, problems);
    check::fits(&services, &health, problems);
    let mut services: Vec<_> = services.into_iter().map(|s| s.service).collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    Some(Config { director: director?, tunnel, limits, health, services })
}

fn director(mut t: Table<'_>, problems: &Problems) -> Option<Director> {
    let (tap, interface) = devices(&mut t, problems);
    let workers = workers(&mut t, problems);
    let capture = t.word(
        "capture",
        &[
            Word::Is("route", Capture::Route),
            Word::Is("manual", Capture::Manual),
            Word::Is("bridge", Capture::Bridge),
        ],
    );
    let quiet = t.get("announce").map(toml::Spanned::span);
    let announce = t.word(
        "announce",
        &[
            Word::Is("arp", Announce::Arp),
            Word::Is("none", Announce::None),
            Word::Later("route", "it comes with the next version; use \"arp\" or \"none\""),
        ],
    );
    if let (Some(Capture::Bridge), Some(Announce::None), Some(span)) = (capture, announce, quiet) {
        problems.at(
            span,
            "in bridge capture the TAP answers for the VIPs",
            "write announce = \"arp\", or lead the traffic to the TAP yourself with capture = \"manual\"",
        );
    }
    let max_connections = t.integer(
        "max_connections",
        &limits::MAX_CONNECTIONS,
        "the flow table is allocated at start, 64 bytes a connection and its index",
    );
    let hash_key_file = t.parsed("hash_key_file", |text| path("hash_key_file", text));
    let io = t.word(
        "io",
        &[
            Word::Is("auto", IoEngine::Auto),
            Word::Is("multishot", IoEngine::Multishot),
            Word::Is("poll", IoEngine::Poll),
        ],
    );
    let state_dir = t.parsed("state_dir", |text| path("state_dir", text));
    let socket = t.parsed("socket", socket_path);
    let admin_group = t.parsed("admin_group", group_name);
    let queue = t.integer(
        "tap_queue_length",
        &limits::TAP_QUEUE,
        "a shorter queue overflows in a burst, a longer one only adds delay",
    );
    let mtu = t.integer("mtu", &limits::MTU, "IPv6 needs 1280; jumbo frames end at 9216");
    let metrics = t.parsed("metrics", listen_address);
    t.finish();

    Some(Director {
        tap: tap.unwrap_or_else(|| limits::DEFAULT_TAP.to_owned()),
        interface: interface?,
        workers,
        capture: capture.unwrap_or(Capture::Route),
        announce: announce.unwrap_or(Announce::Arp),
        max_connections: max_connections.unwrap_or(limits::DEFAULT_MAX_CONNECTIONS),
        hash_key_file: hash_key_file.map(|at| at.value),
        io: io.unwrap_or(IoEngine::Auto),
        state_dir: state_dir.map_or_else(|| limits::DEFAULT_STATE_DIR.into(), |at| at.value),
        socket: socket.map_or_else(|| limits::DEFAULT_SOCKET.into(), |at| at.value),
        admin_group: admin_group.map(|at| at.value),
        tap_queue_length: queue.unwrap_or(limits::DEFAULT_TAP_QUEUE),
        mtu,
        metrics: metrics.map(|at| at.value),
    })
}

/// `tap` and `interface`, which must not be one.
fn devices(t: &mut Table<'_>, problems: &Problems) -> (Option<String>, Option<String>) {
    let tap = t.parsed("tap", |text| interface_name("tap", text));
    let interface = t.parsed("interface", |text| interface_name("interface", text));
    let name = tap.as_ref().map_or(limits::DEFAULT_TAP, |at| &at.value);
    if let Some(interface) = &interface
        && interface.value == name
    {
        problems.at(
            tap.as_ref().unwrap_or(interface).span.clone(),
            format!("`tap` and `interface` are both \"{name}\""),
            "`tap` names a device Adit makes, `interface` the one that faces the clients",
        );
    }
    if interface.is_none() && t.get("interface").is_none() {
        t.missing("interface", "interface = \"eth0\"");
    }
    (tap.map(|at| at.value), interface.map(|at| at.value))
}

fn workers(t: &mut Table<'_>, problems: &Problems) -> u16 {
    let span = t.get("workers").map(toml::Spanned::span);
    if let (Some(n), Some(span)) = (t.integer("workers", &(0..=256u16), "a thread each"), span)
        && n != 1
    {
        problems.at(
            span,
            format!("`workers = {n}` is not supported yet"),
            "several queues come with the next version; write 1, or leave the line out",
        );
    }
    1
}

fn tunnel(table: Option<Table<'_>>, problems: &Problems) -> (Tunnel, DontFragment) {
    let mut tunnel = Tunnel {
        kind: TunnelKind::Ipip,
        source_v4: None,
        source_v6: None,
        ttl: limits::DEFAULT_TTL,
    };
    let Some(mut t) = table else { return (tunnel, DontFragment::Copy) };
    if let Some(kind) = t.word("kind", &[Word::Is("ipip", TunnelKind::Ipip)]) {
        tunnel.kind = kind;
    }
    let mut seen: Vec<At<IpAddr>> = Vec::new();
    for source in t.addresses("source") {
        if let Some(reason) = service::not_unicast(source.value) {
            problems.at(
                source.span,
                format!("`source` {} is {reason}", source.value),
                "an address of this host that the real servers can reach",
            );
            continue;
        }
        if let Some(first) = seen.iter().find(|s| s.value.is_ipv4() == source.value.is_ipv4()) {
            problems.between(
                source.span,
                "a second `source` of the same family is not supported yet",
                (first.span.clone(), "the first"),
                "several come with several queues; name one IPv4 and one IPv6 address at most",
            );
            continue;
        }
        match source.value {
            IpAddr::V4(v4) => tunnel.source_v4 = Some(v4),
            IpAddr::V6(v6) => tunnel.source_v6 = Some(v6),
        }
        seen.push(source);
    }
    if let Some(ttl) = t.integer("ttl", &limits::TTL, "the first router drops a TTL of 0") {
        tunnel.ttl = ttl;
    }
    let df = df(&mut t).unwrap_or(DontFragment::Copy);
    t.finish();
    (tunnel, df)
}

pub(super) fn df(t: &mut Table<'_>) -> Option<DontFragment> {
    t.word("df", &[Word::Is("copy", DontFragment::Copy), Word::Is("clear", DontFragment::Clear)])
}

fn default_timeouts() -> Timeouts {
    Timeouts {
        tcp_half_open: limits::TCP_HALF_OPEN.default,
        tcp_unproven: limits::TCP_UNPROVEN.default,
        tcp_established: limits::TCP_ESTABLISHED.default,
        tcp_fin: limits::TCP_FIN.default,
        tcp_rst: limits::TCP_RST.default,
        udp: limits::UDP.default,
    }
}

/// Timeouts of a table, those it does not name from `base`.
pub(super) fn timeouts(table: Option<Table<'_>>, base: &Timeouts) -> Timeouts {
    let mut timeouts = *base;
    let Some(mut t) = table else { return timeouts };
    let fields: [(&'static str, &DurationBounds, &mut Duration); 6] = [
        ("tcp_half_open", &limits::TCP_HALF_OPEN, &mut timeouts.tcp_half_open),
        ("tcp_unproven", &limits::TCP_UNPROVEN, &mut timeouts.tcp_unproven),
        ("tcp_established", &limits::TCP_ESTABLISHED, &mut timeouts.tcp_established),
        ("tcp_fin", &limits::TCP_FIN, &mut timeouts.tcp_fin),
        ("tcp_rst", &limits::TCP_RST, &mut timeouts.tcp_rst),
        ("udp", &limits::UDP, &mut timeouts.udp),
    ];
    for (key, bounds, field) in fields {
        if let Some(duration) = t.duration(key, bounds) {
            *field = duration;
        }
    }
    t.finish();
    timeouts
}

fn limits(table: Option<Table<'_>>) -> Limits {
    let core = RateLimits::default();
    let mut limits =
        Limits { emitted_per_client: core.client.per_second, emitted_total: core.total.per_second };
    let Some(mut t) = table else { return limits };
    let why = "packets a second; 0 would silence path MTU discovery";
    for (key, field) in [
        ("emitted_per_client", &mut limits.emitted_per_client),
        ("emitted_total", &mut limits.emitted_total),
    ] {
        *field = t.integer(key, &limits::EMITTED, why).unwrap_or(*field);
    }
    t.finish();
    limits
}

/// A device name. The kernel takes more (`dev_valid_name`), but nobody uses it, and these may be
/// put into firewall rules as they are.
fn interface_name(key: &str, text: &str) -> Result<String, (String, String)> {
    let valid = (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@+".contains(c));
    if valid {
        return Ok(text.to_owned());
    }
    Err((
        format!("`{key}` = \"{text}\" is not a device name"),
        "1 to 15 letters, digits, `-`, `_`, `.`, `@` or `+`".to_owned(),
    ))
}

/// A group's name, as useradd(8) allows it. Whether there is such a group is this host's matter.
fn group_name(text: &str) -> Result<String, (String, String)> {
    let valid = (1..=32).contains(&text.len())
        && !text.starts_with('-')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if valid {
        return Ok(text.to_owned());
    }
    Err((
        format!("`admin_group` = \"{text}\" is not a group's name"),
        "a name from /etc/group, such as \"adm\"".to_owned(),
    ))
}

fn path(key: &str, text: &str) -> Result<PathBuf, (String, String)> {
    if text.starts_with('/') && !text.contains('\0') {
        return Ok(PathBuf::from(text));
    }
    Err((
        format!("`{key}` = \"{text}\" is not an absolute path"),
        "begin it with `/`: a daemon's working directory is not the operator's".to_owned(),
    ))
}

fn listen_address(text: &str) -> Result<SocketAddr, (String, String)> {
    let wrong = |what: &str| {
        let right =
            "such as \"127.0.0.1:9105\" or \"[::1]:9105\"; everybody who reaches it can read it";
        (format!("`metrics` = \"{text}\" {what}"), right.to_owned())
    };
    let address: SocketAddr = text.parse().map_err(|_| wrong("is not an address with a port"))?;
    // The kernel would choose one, and nobody would know which.
    if address.port() == 0 {
        return Err(wrong("has no port"));
    }
    Ok(address)
}

fn socket_path(text: &str) -> Result<PathBuf, (String, String)> {
    if text.len() > limits::MAX_SOCKET_PATH {
        let most = limits::MAX_SOCKET_PATH;
        return Err((
            format!("`socket` has {} bytes", text.len()),
            format!("the kernel takes a Unix socket path of {most} bytes at most"),
        ));
    }
    path("socket", text)
}
