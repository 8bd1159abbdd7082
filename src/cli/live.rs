//! Commands that show a running director: `list`, `connections`, `drops`, `capture`.

use super::output::{self, TextTable};
use super::{CommandError, Global, Outcome, converse, health, rate};
use crate::control::admin::api::{
    ConnectionView, Connections, Drops, RealView, ServiceView, Services, Status,
};
use crate::control::admin::client::ClientError;
use crate::control::admin::query::Query;
use crate::control::config::VipPrefix;
use clap::{Args, ValueEnum};
use http_body_util::BodyExt;
use hyper::Method;
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// `adit list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Show traffic instead of weights.
    #[arg(long)]
    pub stats: bool,
    /// Show what happens per second: new connections, packets and bytes (CPS, InPPS, InBPS).
    #[arg(long, conflicts_with = "stats")]
    pub rate: bool,
    /// Seconds between the two readings of --rate.
    #[arg(long, value_name = "S", default_value_t = 1, requires = "rate",
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
    /// Go on until interrupted, with a reading per interval.
    #[arg(long, requires = "rate")]
    pub watch: bool,
    /// Show connection thresholds instead of weights.
    #[arg(long, conflicts_with_all = ["stats", "rate"])]
    pub thresholds: bool,
    /// Show what health checks know instead: state and since when, the last check, its latency, and why.
    #[arg(long, conflicts_with_all = ["stats", "rate", "thresholds"])]
    pub health: bool,
    /// Wait until all real servers with a check are up, for so long at most: 30s. Exits with 1, and
    /// names the others, when they are not.
    #[arg(long, value_name = "TIME", requires = "health", value_parser = humantime::parse_duration)]
    pub wait: Option<std::time::Duration>,
    /// This service alone.
    #[arg(value_name = "SERVICE")]
    pub service: Option<String>,
}

/// Connections that are shown when nobody said how many: more is for programs, not for eyes.
const SHOWN_CONNECTIONS: usize = 1000;

/// `adit connections`.
#[derive(Debug, Args)]
pub struct ConnectionsArgs {
    /// Of this service.
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Of this client.
    #[arg(long, value_name = "ADDRESS")]
    pub client: Option<IpAddr>,
    /// To this real server.
    #[arg(long, value_name = "ADDRESS")]
    pub real: Option<IpAddr>,
    /// How many to show at most; 1000 without this, and all of them with --json.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

/// `adit drops`.
#[derive(Debug, Args)]
pub struct DropsArgs {
    /// Show reasons that never happened too.
    #[arg(long)]
    pub all: bool,
}

/// `adit capture`.
#[derive(Debug, Args)]
pub struct CaptureArgs {
    /// File to write; `-` for standard output, as in `adit capture -w - | tcpdump -nr -`.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub write: PathBuf,
    /// Stop after so many packets.
    #[arg(short, long, value_name = "N")]
    pub count: Option<u64>,
    /// Stop after so many seconds.
    #[arg(long, value_name = "S")]
    pub seconds: Option<u64>,
    /// One side of the tunnel only.
    #[arg(long, value_enum)]
    pub side: Option<Side>,
}

/// A side of the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Side {
    /// As packets come from clients.
    Inner,
    /// As they leave for real servers.
    Outer,
}

#[derive(Serialize)]
struct Listing {
    status: Status,
    services: Vec<ServiceView>,
}

pub(super) fn list(args: &ListArgs, global: &Global) -> Result<Outcome, CommandError> {
    if args.rate {
        return rate::list(args, global);
    }
    if args.health {
        return health::list(args, global);
    }
    let (status, mut services) = converse(global, |client| async move {
        let status: Status = client.ask(Method::GET, "/v1/status").await?;
        let Services { services } = client.ask(Method::GET, "/v1/services").await?;
        Ok((status, services))
    })?;
    if !only_asked(&mut services, args) {
        return Ok(Outcome::Refused);
    }
    if global.json {
        output::json(&Listing { status, services });
        return Ok(Outcome::Fine);
    }
    output::line(&format!(
        "Adit {} on {} ({} engine: {}), up {}",
        status.version,
        status.interface,
        status.engine,
        status.engine_reason,
        humantime::format_duration(std::time::Duration::from_secs(status.uptime_seconds)),
    ));
    output::line(&format!(
        "config {}  services {}  hash key {}  connections {}+{} of {}",
        status.config_hash,
        status.services_hash,
        status.key_fingerprint,
        status.active,
        status.inactive,
        status.max_connections,
    ));
    for vip in &status.vips {
        let reason = vip.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        let state = if vip.announced { "announced" } else { "withdrawn" };
        output::line(&format!("VIP {} {state}{reason}", vip.vip));
    }
    for warning in &status.warnings {
        output::line(&format!("{}: {}", warning.severity, warning.message));
    }
    for service in &services {
        for (real, drain) in
            service.reals.iter().filter_map(|r| Some((r.address, r.drain.as_ref()?)))
        {
            output::line(&format!("{real} of {}: {drain}", service.name));
        }
    }
    let table = match (args.stats, args.thresholds) {
        (true, _) => stats_table(&services),
        (false, true) => threshold_table(&services),
        (false, false) => service_table(&services),
    };
    if args.stats {
        output::raw(io_lines(&status).as_bytes());
    }
    output::raw(table.as_bytes());
    if !args.stats && !args.thresholds {
        output::raw(limit_lines(&services).as_bytes());
        output::line("");
        output::raw(path_table(&services).as_bytes());
    }
    Ok(Outcome::Fine)
}

/// Keeps the service that was asked for, if one was. `false`, and said so, where there is none.
pub(super) fn only_asked(services: &mut Vec<ServiceView>, args: &ListArgs) -> bool {
    let Some(name) = &args.service else { return true };
    services.retain(|s| s.name == *name);
    if services.is_empty() {
        output::error(&format!("there is no service {name}"));
    }
    !services.is_empty()
}

/// How the packet loop does.
fn io_lines(status: &Status) -> String {
    let io = &status.io;
    let mut lines = format!(
        "ring {}\nframes {} from the TAP, {} from receive sockets  out of slots {}  receive errors {}\n",
        status.ring, io.tap_frames, io.source_frames, io.out_of_slots, io.source_errors,
    );
    if status.workers.len() > 1 {
        lines.push_str(&worker_lines(status));
    }
    if let Some(error) = &status.last_send_error {
        lines.push_str(&format!("last send error {error}\n"));
    }
    lines
}

/// How packets are shared out, and what each worker has of them.
fn worker_lines(status: &Status) -> String {
    let mut lines = format!("steering {}\n", status.steering);
    for worker in &status.workers {
        let totals = &worker.totals;
        lines.push_str(&format!(
            "worker {}  received {}  taken over {}  forwarded {}  handed over {}  dropped {}  silent {} ms\n",
            worker.worker,
            totals.received,
            totals.taken_over,
            totals.forwarded,
            totals.handed_over,
            worker.dropped.values().sum::<u64>(),
            worker.silence_ms,
        ));
    }
    lines
}

pub(super) fn endpoint(address: IpAddr, port: &str) -> String {
    match address {
        IpAddr::V4(v4) => format!("{v4}:{port}"),
        IpAddr::V6(v6) => format!("[{v6}]:{port}"),
    }
}

pub(super) fn vip_endpoint(vip: VipPrefix, ports: &str) -> String {
    match vip.host_bits() {
        0 => endpoint(vip.address(), ports),
        _ if vip.is_ipv4() => format!("{vip}:{ports}"),
        _ => format!("[{vip}]:{ports}"),
    }
}

/// The line of a service, as ipvsadm shows it, with its name behind.
pub(super) fn service_line(service: &ServiceView) -> String {
    let mut flags = String::new();
    if !service.scheduler_flags.is_empty() {
        flags.push_str(&format!(" ({})", service.scheduler_flags.join(",")));
    }
    if let Some(seconds) = service.persistence_seconds {
        flags.push_str(&format!(" persistent {seconds}"));
    }
    if service.one_packet {
        flags.push_str(" ops");
    }
    if !service.configured {
        flags.push_str(" (removed)");
    }
    let name = if service.name.is_empty() { "?" } else { &service.name };
    format!(
        "{}  {} {}{flags}  [{name}]",
        service.protocol.to_uppercase(),
        vip_endpoint(service.vip, &service.ports),
        service.scheduler,
    )
}

/// Real servers listen on the VIP's port: the tunnel changes no ports.
pub(super) fn real_endpoint(service: &ServiceView, real: &RealView) -> String {
    let port = if service.ports.parse::<u16>().is_ok() { service.ports.as_str() } else { "0" };
    endpoint(real.address, port)
}

/// The table under each service is laid out once for all, so that columns line up.
fn under_services(
    services: &[ServiceView],
    head: &[&str],
    row: impl Fn(&ServiceView, &RealView) -> Vec<String>,
) -> String {
    let mut table = TextTable::new(head);
    for service in services {
        for real in &service.reals {
            table.row(row(service, real));
        }
    }
    let text = table.render();
    let mut lines = text.lines();
    let mut out = String::from("Prot LocalAddress:Port Scheduler Flags\n");
    out.push_str(&format!("  -> {}\n", lines.next().unwrap_or_default()));
    for service in services {
        out.push_str(&service_line(service));
        out.push('\n');
        for line in lines.by_ref().take(service.reals.len()) {
            out.push_str(&format!("  -> {line}\n"));
        }
    }
    out
}

fn service_table(services: &[ServiceView]) -> String {
    let head = ["RemoteAddress:Port", "Forward", ">Weight", ">ActiveConn", ">InActConn", "State"];
    under_services(services, &head, |service, real| {
        vec![
            real_endpoint(service, real),
            // The words of ipvsadm.
            if real.tunnel == "direct" { "Route" } else { "Tunnel" }.to_owned(),
            real.weight.to_string(),
            real.counters.active.to_string(),
            real.counters.inactive.to_string(),
            real.state.clone(),
        ]
    })
}

fn stats_table(services: &[ServiceView]) -> String {
    let head = ["RemoteAddress:Port", ">Conns", ">InPkts", ">InBytes", "State"];
    under_services(services, &head, |service, real| {
        vec![
            real_endpoint(service, real),
            real.counters.connections.to_string(),
            real.counters.packets.to_string(),
            real.counters.bytes.to_string(),
            real.state.clone(),
        ]
    })
}

fn threshold_table(services: &[ServiceView]) -> String {
    let head = ["RemoteAddress:Port", ">Upper", ">Lower", ">ActiveConn", ">InActConn", "State"];
    let bound = |bound: Option<u32>| bound.map_or_else(|| "-".to_owned(), |n| n.to_string());
    under_services(services, &head, |service, real| {
        vec![
            real_endpoint(service, real),
            bound(real.max_connections),
            bound(real.min_connections),
            real.counters.active.to_string(),
            real.counters.inactive.to_string(),
            real.state.clone(),
        ]
    })
}

/// What services take of new flows, those that have limits.
fn limit_lines(services: &[ServiceView]) -> String {
    let limited = services.iter().filter(|service| !service.limits.is_none());
    limited.map(|service| format!("limits of {}: {}\n", service.name, service.limits)).collect()
}

fn path_table(services: &[ServiceView]) -> String {
    let mut reals: Vec<&RealView> = services.iter().flat_map(|s| &s.reals).collect();
    reals.sort_by(|a, b| (a.address, &a.tunnel).cmp(&(b.address, &b.tunnel)));
    reals.dedup_by(|a, b| (a.address, &a.tunnel) == (b.address, &b.tunnel));
    let head = ["Real server", "Tunnel", "Source", "By", "Next hop", ">MTU", ">PMTU", "Egress"];
    let mut table = TextTable::new(&head);
    let address = |a: Option<IpAddr>| a.map_or_else(|| "-".to_owned(), |a| a.to_string());
    for real in reals {
        table.row([
            real.address.to_string(),
            real.tunnel.clone(),
            output::sources(real.tunnel == "direct", real.source, real.more_sources.len()),
            real.interface.clone().unwrap_or_else(|| "-".to_owned()),
            address(real.next_hop),
            real.link_mtu.to_string(),
            real.path_mtu.to_string(),
            real.egress.clone(),
        ]);
    }
    table.render()
}

pub(super) fn connections(
    args: &ConnectionsArgs,
    global: &Global,
) -> Result<Outcome, CommandError> {
    // A program that reads the JSON would not see that some are left out.
    let limit = args.limit.unwrap_or(if global.json { usize::MAX } else { SHOWN_CONNECTIONS });
    let client_address = args.client.map(|a| a.to_string());
    let real = args.real.map(|a| a.to_string());
    let service = args.service.clone();
    let (found, more) = converse(global, |client| async move {
        let mut found: Vec<ConnectionView> = Vec::new();
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            if found.len() >= limit {
                return Ok((found, true));
            }
            let (at, rest) = (at.to_string(), (limit - found.len()).to_string());
            let mut parameters = vec![("cursor", at.as_str()), ("limit", rest.as_str())];
            for (key, value) in
                [("service", &service), ("client", &client_address), ("real", &real)]
            {
                parameters.extend(value.as_deref().map(|value| (key, value)));
            }
            let target = format!("/v1/connections{}", Query::write(&parameters));
            let page: Connections = client.ask(Method::GET, &target).await?;
            found.extend(page.connections);
            cursor = page.next;
        }
        Ok((found, false))
    })?;
    if global.json {
        output::json(&found);
        return Ok(Outcome::Fine);
    }
    let head = ["Pro", "Client", "Virtual", "Real server", "State", ">Idle", ">Expire", "Service"];
    let mut table = TextTable::new(&head);
    for c in &found {
        let dash = || "-".to_owned();
        table.row([
            c.protocol.to_uppercase(),
            SocketAddr::new(c.client, c.client_port).to_string(),
            SocketAddr::new(c.vip, c.vip_port).to_string(),
            c.real.map_or_else(dash, |a| a.to_string()),
            c.state.clone(),
            format!("{}s", c.idle_seconds),
            format!("{}s", c.expires_seconds),
            c.service.clone().unwrap_or_else(dash),
        ]);
    }
    output::raw(table.render().as_bytes());
    if more {
        output::line(&format!("… the first {limit}; --limit shows more"));
    }
    Ok(Outcome::Fine)
}

pub(super) fn drops(args: &DropsArgs, global: &Global) -> Result<Outcome, CommandError> {
    let Drops { mut drops } =
        converse(global, |client| async move { client.ask(Method::GET, "/v1/drops").await })?;
    if !args.all {
        drops.retain(|d| d.count > 0);
    }
    if global.json {
        output::json(&drops);
        return Ok(Outcome::Fine);
    }
    if drops.is_empty() {
        output::line("no packet was dropped");
        return Ok(Outcome::Fine);
    }
    let mut table = TextTable::new(&[">Packets", "Reason", "Meaning"]);
    drops.sort_by_key(|d| std::cmp::Reverse(d.count));
    for d in drops {
        table.row([d.count.to_string(), d.reason, d.meaning]);
    }
    output::raw(table.render().as_bytes());
    Ok(Outcome::Fine)
}

pub(super) fn capture(args: &CaptureArgs, global: &Global) -> Result<Outcome, CommandError> {
    let to_stdout = args.write.as_os_str() == "-";
    let write_error =
        |source| CommandError::Write { what: args.write.display().to_string(), source };
    let mut file =
        if to_stdout { None } else { Some(File::create(&args.write).map_err(write_error)?) };
    let (count, seconds) = (args.count.map(|n| n.to_string()), args.seconds.map(|n| n.to_string()));
    let side = args.side.map(|side| match side {
        Side::Inner => "inner",
        Side::Outer => "outer",
    });
    let mut parameters = Vec::new();
    parameters.extend(count.as_deref().map(|n| ("count", n)));
    parameters.extend(seconds.as_deref().map(|n| ("seconds", n)));
    parameters.extend(side.map(|side| ("side", side)));
    let target = format!("/v1/capture{}", Query::write(&parameters));
    let broken = global.socket_path();
    converse(global, |client| async move {
        let mut body = client.stream(&target).await?;
        while let Some(frame) = body.frame().await {
            let lost = |reason: String| ClientError::Broken { path: broken.clone(), reason };
            let frame = frame.map_err(|error| lost(error.to_string()))?;
            let Ok(bytes) = frame.into_data() else { continue };
            match &mut file {
                Some(file) => file.write_all(&bytes).map_err(|error| lost(error.to_string()))?,
                None => output::raw(&bytes),
            }
        }
        Ok(())
    })?;
    Ok(Outcome::Fine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::{ClientLimit, NewFlows, ServiceLimits};

    #[test]
    fn a_services_line_is_what_ipvsadm_shows() {
        let mut service = ServiceView {
            name: "dns".to_owned(),
            vip: IpAddr::from([192, 0, 2, 1]).into(),
            ports: "53".to_owned(),
            protocol: "udp".to_owned(),
            scheduler: "sh".to_owned(),
            scheduler_flags: vec!["sh-port".to_owned(), "sh-fallback".to_owned()],
            one_packet: true,
            table_size: None,
            persistence_seconds: None,
            limits: ServiceLimits::default(),
            configured: true,
            reals: Vec::new(),
        };
        assert_eq!(service_line(&service), "UDP  192.0.2.1:53 sh (sh-port,sh-fallback) ops  [dns]");
        service.scheduler_flags.clear();
        (service.one_packet, service.persistence_seconds) = (false, Some(300));
        assert_eq!(service_line(&service), "UDP  192.0.2.1:53 sh persistent 300  [dns]");
        let unlimited = service.clone();
        let new = NewFlows { per_second: 50, burst: 70 };
        service.limits = ServiceLimits {
            total: Some(NewFlows { per_second: 2000, burst: 4000 }),
            client: Some(ClientLimit { new, ipv4_prefix: 32, ipv6_prefix: 64 }),
            half_open: Some(10_000),
        };
        assert_eq!(
            limit_lines(&[unlimited, service]),
            "limits of dns: 2000 new/s (burst 4000), 50 new/s (burst 70) per /32 and /64, 10000 \
             half-open\n"
        );
    }
}
