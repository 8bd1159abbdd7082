//! `[[service]]` and `[[service.real]]`.

use super::check;
use super::limits;
use super::reader::{At, Problems, Table, Word};
use super::sections::{df, timeouts};
use super::tunnel::TunnelChoice;
use super::types::{
    ClientLimit, DontFragment, NewFlows, Persistence, Ports, Protocol, Real, Scheduler, Service,
    ServiceLimits, Timeouts, VipPrefix,
};
use crate::dataplane::scheduler::SchedulerFlag;
use crate::dataplane::vip_prefix::VipPrefixError;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeInteger, DeValue};

/// The same on every director, after every restart.
const DEFAULT_SCHEDULER: Scheduler = Scheduler::Maglev;

/// What a service takes from the other sections.
pub(super) struct Defaults {
    pub(super) timeouts: Timeouts,
    pub(super) df: DontFragment,
    pub(super) tunnel: TunnelChoice,
}

/// A service with the places that conflicts between services point at.
pub(super) struct Placed {
    pub(super) service: Service,
    pub(super) name: Range<usize>,
    pub(super) vip: Range<usize>,
    pub(super) ports: Range<usize>,
    pub(super) group: Option<Range<usize>>,
    /// In the order of `service.reals`.
    pub(super) reals: Vec<Range<usize>>,
}

pub(super) fn read_all(
    tables: Vec<Table<'_>>,
    defaults: &Defaults,
    problems: &Problems,
) -> Vec<Placed> {
    if let Some(beyond) = tables.get(limits::MAX_SERVICES) {
        problems.at(
            beyond.span(),
            format!("{} services", tables.len()),
            format!("at most {} fit", limits::MAX_SERVICES),
        );
        return Vec::new();
    }
    tables.into_iter().filter_map(|table| read(table, defaults, problems)).collect()
}

fn read(mut t: Table<'_>, defaults: &Defaults, problems: &Problems) -> Option<Placed> {
    let name = t.parsed("name", |text| label("name", text));
    let vip = t.parsed("vip", vip);
    let ports = ports(&mut t, problems);
    let protocol =
        t.word("protocol", &[Word::Is("tcp", Protocol::Tcp), Word::Is("udp", Protocol::Udp)]);
    let scheduler = t.word("scheduler", &Scheduler::ALL.map(|kind| Word::Is(kind.name(), kind)));
    let flags = SchedulerFlag::ALL.map(|flag| Word::Is(flag.name(), flag));
    let flags = t.words("scheduler_flags", &flags);
    // Of a scheduler that nobody knows nothing more can be said.
    let misnamed = scheduler.is_none() && t.get("scheduler").is_some();
    let flags = if misnamed { Vec::new() } else { flags };
    let scheduler_flags = scheduler_flags(scheduler.unwrap_or(DEFAULT_SCHEDULER), flags, problems);
    let one_packet = t.boolean("one_packet");
    let persists = t.get("persistence").map(Spanned::span);
    let (persistence, group) = match t.table("persistence", "`persistence`") {
        Some(table) => persistence(table),
        None => (None, None),
    };
    let limits = t.table("limits", "`limits`").map(|table| service_limits(table, problems));
    let timeouts = timeouts(t.table("timeouts", "`timeouts`"), &defaults.timeouts);
    let df = df(&mut t).unwrap_or(defaults.df);
    let tunnel = TunnelChoice::below(&mut t, problems, defaults.tunnel);
    let check_span = t.get("check").map(Spanned::span).unwrap_or_default();
    let raw_check = t
        .table("check", "`check`")
        .map(|table| At { value: check::read(table, problems), span: check_span });
    let mut reals = reals(t.tables("real", "[[service.real]]"), tunnel, problems);
    for (key, example) in [
        ("name", "name = \"orders-read\""),
        ("vip", "vip = \"198.51.100.10\""),
        ("port", "port = 5432"),
    ] {
        if t.get(key).is_none() {
            t.missing(key, example);
        }
    }
    t.finish();

    reals.sort_by_key(|(real, _)| real.address);
    let (reals, real_spans) = reals.into_iter().unzip();
    let (name, vip, ports) = (name?, vip?, ports?);
    let ends = [vip.value.address(), vip.value.addresses().last().unwrap_or(vip.value.address())];
    if let Some(reason) = ends.into_iter().find_map(not_unicast) {
        problems.at(
            vip.span,
            format!("`vip` {} is {reason}", vip.value),
            "an address that clients can send to",
        );
        return None;
    }
    let protocol = protocol.unwrap_or(Protocol::Tcp);
    let one_packet =
        one_packet.is_some_and(|key| one_packet_fits(key, protocol, persists, problems));
    let check = raw_check.and_then(|raw| check::complete(&raw, &ports.value, protocol, problems));
    let service = Service {
        name: name.value,
        vip: vip.value,
        ports: ports.value,
        protocol,
        scheduler: scheduler.unwrap_or(DEFAULT_SCHEDULER),
        scheduler_flags,
        one_packet,
        persistence,
        limits: limits.map_or_else(ServiceLimits::default, |limits| limits.of(protocol, problems)),
        timeouts,
        df,
        check,
        reals,
    };
    let (name, vip, ports) = (name.span, vip.span, ports.span);
    Some(Placed { service, name, vip, ports, group, reals: real_spans })
}

/// An address, or a prefix of no more than there may be VIPs.
fn vip(text: &str) -> Result<VipPrefix, (String, String)> {
    let wrong = |error: VipPrefixError| {
        let help = match &error {
            VipPrefixError::Syntax(_) => {
                "an IPv4 or IPv6 address, such as \"198.51.100.10\" or \"2001:db8::10\", or a prefix \
                 such as \"198.51.100.16/28\"; names are not looked up"
                    .to_owned()
            }
            VipPrefixError::Length { .. } => "such as \"198.51.100.16/28\"".to_owned(),
            VipPrefixError::HostBits { given, right } => {
                let one = given.split('/').next().unwrap_or_default();
                format!("\"{right}\" for all its addresses, \"{one}\" for the one")
            }
        };
        (format!("`vip` = \"{text}\": {error}"), help)
    };
    let vip: VipPrefix = text.parse().map_err(wrong)?;
    if vip.host_bits() > limits::MAX_VIP_HOST_BITS {
        let least = vip.length() + vip.host_bits() - limits::MAX_VIP_HOST_BITS;
        return Err((
            format!("`vip` = \"{text}\" has more than {} addresses", limits::MAX_VIPS),
            format!("a prefix of {least} bits or more: a director has room for so many VIPs"),
        ));
    }
    Ok(vip)
}

/// The flags of a service, each of which its scheduler must have.
fn scheduler_flags(
    scheduler: Scheduler,
    given: Vec<At<SchedulerFlag>>,
    problems: &Problems,
) -> Vec<SchedulerFlag> {
    let mut flags = Vec::new();
    for At { value: flag, span } in given {
        if flag.scheduler() != scheduler {
            let own: Vec<&str> = SchedulerFlag::ALL
                .iter()
                .filter(|flag| flag.scheduler() == scheduler)
                .map(|flag| flag.name())
                .collect();
            let right = if own.is_empty() { "none".to_owned() } else { own.join(", ") };
            problems.at(
                span,
                format!("scheduler \"{scheduler}\" has no flag \"{flag}\""),
                format!(
                    "\"{flag}\" belongs to \"{}\"; \"{scheduler}\" has {right}",
                    flag.scheduler()
                ),
            );
        } else if flags.contains(&flag) {
            problems.at(span, format!("`scheduler_flags` names \"{flag}\" twice"), "once will do");
        } else {
            flags.push(flag);
        }
    }
    flags.sort_unstable();
    flags
}

/// One-packet scheduling keeps no flow: TCP cannot do without, and persistence is written by flows.
fn one_packet_fits(
    key: At<bool>,
    protocol: Protocol,
    persistence: Option<Range<usize>>,
    problems: &Problems,
) -> bool {
    if !key.value {
        return false;
    }
    if protocol == Protocol::Tcp {
        problems.at(
            key.span.clone(),
            "`one_packet` in a TCP service",
            "the segments of a connection belong to one real server; it is for protocol = \"udp\"",
        );
    }
    if let Some(persistence) = persistence {
        problems.between(
            key.span,
            "`one_packet` in a service with persistence",
            (persistence, "the persistence"),
            "a client is remembered by its flows, and there are none; to keep clients together use \
             scheduler = \"sh\" or \"mh\"",
        );
    }
    true
}

fn reals(
    tables: Vec<Table<'_>>,
    tunnel: TunnelChoice,
    problems: &Problems,
) -> Vec<(Real, Range<usize>)> {
    tables.into_iter().filter_map(|table| real(table, tunnel, problems)).collect()
}

fn real(
    mut t: Table<'_>,
    tunnel: TunnelChoice,
    problems: &Problems,
) -> Option<(Real, Range<usize>)> {
    let address = t.address("address");
    let weight = t.integer("weight", &limits::WEIGHT, "0 means drained");
    let (max_connections, min_connections) = thresholds(&mut t, problems);
    let tunnel = TunnelChoice::below(&mut t, problems, tunnel);
    if address.is_none() && t.get("address").is_none() {
        t.missing("address", "address = \"10.20.0.11\"");
    }
    t.finish();
    let address = address?;
    if let Some(reason) = not_unicast(address.value) {
        problems.at(
            address.span,
            format!("real server {} is {reason}", address.value),
            "the address its tunnel ends at",
        );
        return None;
    }
    let weight = weight.unwrap_or(limits::DEFAULT_WEIGHT);
    let address_span = address.span;
    let address = address.value;
    let tunnel = tunnel.towards(address);
    Some((Real { address, weight, max_connections, min_connections, tunnel }, address_span))
}

/// `max_connections` and `min_connections` of a real server.
fn thresholds(t: &mut Table<'_>, problems: &Problems) -> (Option<u32>, Option<u32>) {
    let why = "connections to this real server in this service; without the key there is no bound";
    let upper = t.integer("max_connections", &limits::THRESHOLD, why);
    let lower = t.integer("min_connections", &limits::THRESHOLD, why);
    let span = |t: &mut Table<'_>, key| t.get(key).map(Spanned::span).unwrap_or_default();
    match (upper, lower) {
        (None, Some(_)) if t.get("max_connections").is_none() => problems.at(
            span(t, "min_connections"),
            "`min_connections` without `max_connections`",
            "it says when a real server that had too many takes new ones again",
        ),
        (Some(upper), Some(lower)) if lower > upper => {
            let most = span(t, "max_connections");
            problems.between(
                span(t, "min_connections"),
                format!("`min_connections` = {lower} is above `max_connections` = {upper}"),
                (most, "the upper one"),
                "the lower threshold is the upper one at most",
            );
        }
        (Some(_) | None, Some(_) | None) => {}
    }
    (upper, lower)
}

fn persistence(mut t: Table<'_>) -> (Option<Persistence>, Option<Range<usize>>) {
    let timeout = t.duration("timeout", &limits::PERSISTENCE);
    let v4 = t.integer("ipv4_prefix", &(1..=32u8), "32 tells every client apart");
    let v6 = t.integer("ipv6_prefix", &(1..=128u8), "64 takes a host's privacy addresses together");
    let group = t.parsed("group", |text| label("group", text));
    t.finish();
    let span = group.as_ref().map(|g| g.span.clone());
    let persistence = Persistence {
        timeout: timeout.unwrap_or(limits::PERSISTENCE.default),
        ipv4_prefix: v4.unwrap_or(32),
        // A host has a /64 of addresses to itself and changes them daily (RFC 8981).
        ipv6_prefix: v6.unwrap_or(64),
        group: group.map(|g| g.value),
    };
    (Some(persistence), span)
}

/// `limits` of a service, and where it bounds half-open flows.
struct ReadLimits {
    limits: ServiceLimits,
    half_open: Option<Range<usize>>,
}

impl ReadLimits {
    /// The limits, which must make sense for the protocol.
    fn of(self, protocol: Protocol, problems: &Problems) -> ServiceLimits {
        if let (Protocol::Udp, Some(span)) = (protocol, self.half_open) {
            problems.at(
                span,
                "`half_open` in a UDP service",
                "only TCP has a handshake; bound UDP by `new_per_second`",
            );
        }
        self.limits
    }
}

fn service_limits(mut t: Table<'_>, problems: &Problems) -> ReadLimits {
    let total = new_flows(&mut t, ["new_per_second", "new_burst"], problems);
    let client = new_flows(&mut t, ["client_new_per_second", "client_new_burst"], problems);
    let v4 = t.integer("client_ipv4_prefix", &(1..=32u8), "32 tells every client apart");
    let v6 = t.integer("client_ipv6_prefix", &(1..=128u8), "64 is one host's or one customer's");
    for key in ["client_ipv4_prefix", "client_ipv6_prefix"] {
        if t.get("client_new_per_second").is_none()
            && let Some(value) = t.get(key)
        {
            let help = "it says what a client is to that limit: add it, or leave this out";
            let message = format!("`{key}` without `client_new_per_second`");
            problems.at(value.span(), message, help);
        }
    }
    let why = "half-open connections at a time; without the key the flow table is the bound";
    let half_open = t.integer("half_open", &limits::HALF_OPEN, why);
    let span = t.get("half_open").map(Spanned::span);
    t.finish();
    let client = client.map(|new| ClientLimit {
        new,
        ipv4_prefix: v4.unwrap_or(32),
        ipv6_prefix: v6.unwrap_or(64),
    });
    ReadLimits { limits: ServiceLimits { total, client, half_open }, half_open: span }
}

/// A rate of new flows, and its burst; by default as many at once as in a second.
fn new_flows(
    t: &mut Table<'_>,
    [rate_key, burst_key]: [&'static str; 2],
    problems: &Problems,
) -> Option<NewFlows> {
    let why = "new connections or datagrams of unknown flows; without the key there is no bound";
    let per_second = t.integer(rate_key, &limits::NEW_FLOWS, why);
    let burst = t.integer(burst_key, &limits::NEW_FLOWS, why);
    if t.get(rate_key).is_none()
        && let Some(value) = t.get(burst_key)
    {
        let help = "it says how many may come at once where that many a second may";
        problems.at(value.span(), format!("`{burst_key}` without `{rate_key}`"), help);
    }
    let per_second = per_second?;
    Some(NewFlows { per_second, burst: burst.unwrap_or(per_second) })
}

const PORT_HELP: &str =
    "a port such as 5432, a list [5432, 6432], a range \"6000-6009\" or \"any\"";

fn ports(t: &mut Table<'_>, problems: &Problems) -> Option<At<Ports>> {
    let value = t.get("port")?;
    let span = value.span();
    let parsed = if let DeValue::Array(items) = value.get_ref() {
        let ports: Result<Vec<u16>, String> = items
            .iter()
            .map(|item| match item.get_ref().as_integer() {
                Some(number) => port_number(number),
                None => Err("a list of ports holds numbers only".to_owned()),
            })
            .collect();
        ports.and_then(port_list)
    } else if let Some(number) = value.get_ref().as_integer() {
        port_number(number).map(Ports::Exact)
    } else if let Some(text) = value.get_ref().as_str() {
        port_text(text)
    } else {
        Err(format!("`port` cannot be a {}", value.get_ref().type_str()))
    };
    match parsed {
        Ok(value) => Some(At { value, span }),
        Err(message) => {
            problems.at(span, message, PORT_HELP);
            None
        }
    }
}

fn port_number(n: &DeInteger<'_>) -> Result<u16, String> {
    u16::from_str_radix(n.as_str(), n.radix())
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("{n} is not a port: they go from 1 to 65535"))
}

fn port_text(text: &str) -> Result<Ports, String> {
    if text == "any" {
        return Ok(Ports::Any);
    }
    let wrong = || format!("`port` = \"{text}\" is neither a range nor \"any\"");
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let number = |side: &str| side.trim().parse::<u16>().map_err(|_| wrong());
    let (first, last) = (number(first)?, number(last)?);
    if first == 0 {
        return Err(format!("`port` = \"{text}\": ports begin at 1"));
    }
    if first >= last {
        return Err(format!("`port` = \"{text}\": the first port must be the smaller one"));
    }
    Ok(Ports::Range(first, last))
}

fn port_list(mut ports: Vec<u16>) -> Result<Ports, String> {
    let count = ports.len();
    ports.sort_unstable();
    ports.dedup();
    match ports.as_slice() {
        [] => Err("`port` is an empty list".to_owned()),
        _ if ports.len() != count => Err("`port` names a port twice".to_owned()),
        [one] => Ok(Ports::Exact(*one)),
        _ if count > limits::MAX_PORT_LIST => {
            Err(format!("{count} ports in a list; at most {}", limits::MAX_PORT_LIST))
        }
        _ => Ok(Ports::List(ports)),
    }
}

/// A service's or group's name: it is printed in tables, URLs and metric labels.
pub(in crate::control) fn label(key: &str, text: &str) -> Result<String, (String, String)> {
    let valid = (1..=limits::MAX_NAME).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if valid {
        return Ok(text.to_owned());
    }
    Err((
        format!("`{key}` = \"{text}\" is not a name"),
        format!("1 to {} letters, digits, `-`, `_` or `.`", limits::MAX_NAME),
    ))
}

/// Why an address cannot be one host's on a network, if so.
pub(in crate::control) fn not_unicast(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("the unspecified address");
    }
    if address.is_multicast() {
        return Some("a multicast address");
    }
    if address.is_loopback() {
        return Some("a loopback address");
    }
    match address {
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some("the broadcast address"),
        IpAddr::V4(a) => match a.octets()[0] {
            0 => Some("in 0.0.0.0/8, which no host may have"),
            240.. => Some("in the reserved block 240.0.0.0/4"),
            1..=239 => None,
        },
        IpAddr::V6(a) if a.is_unicast_link_local() => {
            Some("link-local, which means nothing without an interface")
        }
        IpAddr::V6(a) => {
            a.to_ipv4_mapped().map(|_| "an IPv4-mapped address; write the IPv4 address itself")
        }
    }
}
