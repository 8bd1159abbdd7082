//! `[director]`, `[tunnel]`, `[timeouts]` and `[limits]`.

use super::check;
use super::conflicts;
use super::limits::{self, DurationBounds};
use super::reader::{At, Problems, Table, Word};
use super::service;
use super::tunnel::{TunnelChoice, TunnelKind};
use super::types::{
    Announce, Capture, Config, Director, DontFragment, IoEngine, Limits, Timeouts, Tunnel,
};
use crate::dataplane::rate_limit::RateLimits;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
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
    let (tunnel, choice, df) = tunnel(root.table("tunnel", "[tunnel]"), problems);
    let timeouts = timeouts(root.table("timeouts", "[timeouts]"), &default_timeouts());
    let limits = limits(root.table("limits", "[limits]"));
    let defaults = service::Defaults { timeouts, df, tunnel: choice };
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
    let workers = workers(&mut t);
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
            Word::Is("route", Announce::Route),
            Word::Is("none", Announce::None),
        ],
    );
    if let (Some(capture), Some(announce), Some(span)) = (capture, announce, quiet) {
        announced_otherwise(capture, announce, span, problems);
    }
    let withdraw_wait = withdraw_wait(&mut t, announce, problems);
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
        withdraw_wait,
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

/// Ways to announce VIPs that a way to capture their packets does not go with.
fn announced_otherwise(
    capture: Capture,
    announce: Announce,
    span: Range<usize>,
    problems: &Problems,
) {
    match (capture, announce) {
        (Capture::Bridge, Announce::None) => problems.at(
            span,
            "in bridge capture the TAP answers for the VIPs",
            "write announce = \"arp\", or lead the traffic to the TAP yourself with capture = \"manual\"",
        ),
        (Capture::Bridge, Announce::Route) => problems.at(
            span,
            "in bridge capture there are no routes of VIPs that could announce them",
            "write capture = \"route\" to have them, or announce = \"arp\": the TAP answers on the bridge",
        ),
        (Capture::Manual, Announce::Route) => problems.at(
            span,
            "in manual capture Adit makes no routes of VIPs that could announce them",
            "write capture = \"route\" to have them, or announce = \"none\" and announce what you lead \
             to the TAP yourself",
        ),
        (Capture::Route, _) | (_, Announce::Arp) | (Capture::Manual, Announce::None) => {}
    }
}

fn withdraw_wait(
    t: &mut Table<'_>,
    announce: Option<Announce>,
    problems: &Problems,
) -> Option<Duration> {
    let span = t.get("withdraw_wait").map(toml::Spanned::span);
    let given = t.duration("withdraw_wait", &limits::WITHDRAW_WAIT);
    if announce == Some(Announce::Route) {
        return Some(given.unwrap_or(limits::WITHDRAW_WAIT.default));
    }
    if let Some(span) = span {
        problems.at(
            span,
            "`withdraw_wait` is about routes of VIPs, and these do not announce them",
            "leave it out, or write announce = \"route\"",
        );
    }
    None
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

fn workers(t: &mut Table<'_>) -> u16 {
    t.integer("workers", &(0..=limits::MAX_WORKERS), "a thread each; 0: one per core").unwrap_or(1)
}

fn tunnel(table: Option<Table<'_>>, problems: &Problems) -> (Tunnel, TunnelChoice, DontFragment) {
    let mut tunnel = Tunnel {
        kind: TunnelKind::Ipip,
        source_v4: Vec::new(),
        source_v6: Vec::new(),
        ttl: limits::DEFAULT_TTL,
    };
    let Some(mut t) = table else {
        return (tunnel, TunnelChoice::default(), DontFragment::Copy);
    };
    let choice = TunnelChoice::read(&mut t, problems, false);
    tunnel.kind = choice.kind;
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
        if let Some(first) = seen.iter().find(|s| s.value == source.value) {
            problems.between(
                source.span,
                format!("`source` names {} twice", source.value),
                (first.span.clone(), "the first"),
                "flows spread evenly over the addresses: name each once",
            );
            continue;
        }
        let of_family = seen.iter().filter(|s| s.value.is_ipv4() == source.value.is_ipv4());
        if of_family.count() == limits::MAX_SOURCES {
            let most = limits::MAX_SOURCES;
            problems.at(
                source.span,
                format!("more than {most} sources of one family"),
                "as many as real servers have receive queues will do",
            );
            break;
        }
        match source.value {
            IpAddr::V4(v4) => tunnel.source_v4.push(v4),
            IpAddr::V6(v6) => tunnel.source_v6.push(v6),
        }
        seen.push(source);
    }
    // The order in the file means nothing: a flow's source is the same for the same set.
    tunnel.source_v4.sort_unstable();
    tunnel.source_v6.sort_unstable();
    if let Some(ttl) = t.integer("ttl", &limits::TTL, "the first router drops a TTL of 0") {
        tunnel.ttl = ttl;
    }
    let df = df(&mut t).unwrap_or(DontFragment::Copy);
    t.finish();
    (tunnel, choice, df)
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
pub(in crate::control) fn interface_name(
    key: &str,
    text: &str,
) -> Result<String, (String, String)> {
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
