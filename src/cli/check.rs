//! `adit check`: mistakes in the configuration and in the host's setup.

use super::output::{self, TextTable};
use super::{CommandError, Global, Outcome, load_config};
use crate::control::config::{
    Config, ConfigErrors, LoadedKey, RealTunnel, RenderStyle, config_hash, services_hash,
};
use crate::control::finding::{self, Finding, Severity};
use crate::control::netlink::NetlinkError;
use crate::control::netlink::egress::RealPath;
use crate::control::{host, runtime};
use crate::dataplane::scheduler::table::{MEMBERS_MAX, table_size};
use clap::Args;
use serde::Serialize;
use std::net::IpAddr;

/// `adit check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Look at the configuration only, not at this host.
    #[arg(long)]
    pub offline: bool,
}

#[derive(Serialize)]
struct Report {
    config: String,
    hash: String,
    services_hash: String,
    key_fingerprint: Option<String>,
    services: usize,
    real_servers: usize,
    findings: Vec<Finding>,
    /// Bytes of the flow region's file, and of its index in memory.
    region_bytes: u64,
    index_bytes: u64,
    tables: Vec<PlacementTable>,
    /// The way to each real server; empty with `--offline`.
    paths: Vec<RealPath>,
}

/// The placement table of one service.
#[derive(Serialize)]
struct PlacementTable {
    service: String,
    members: usize,
    slots: u32,
    /// Members a table of this size holds; with one more the next size is taken, and nearly all
    /// clients are placed anew.
    members_max: usize,
}

#[derive(Serialize)]
struct RefusedReport<'a> {
    config: &'a str,
    problems: &'a [crate::control::config::Problem],
}

pub(super) fn run(args: &CheckArgs, global: &Global) -> Result<Outcome, CommandError> {
    let config = load_config(&global.config)?;
    let mut report = report(&config, global);
    if !args.offline {
        let (findings, paths) = look_at_host(&config);
        report.findings.extend(findings);
        report.findings.sort_by_key(|f| f.severity);
        report.paths = paths;
    }
    let refused = finding::count(&report.findings, Severity::Error) > 0;
    if global.json {
        output::json(&report);
    } else {
        show(&report);
    }
    Ok(if refused { Outcome::Refused } else { Outcome::Fine })
}

fn look_at_host(config: &Config) -> (Vec<Finding>, Vec<RealPath>) {
    match host_facts(config) {
        Ok(facts) => (host::judge(config, &facts), facts.survey.paths),
        Err(finding) => (vec![finding], Vec::new()),
    }
}

/// What the host is like, or why that cannot be seen.
pub(super) fn host_facts(config: &Config) -> Result<host::HostFacts, Finding> {
    let failed = |what: String| {
        let help = "the rest of the host was not looked at; `adit check --offline` checks the file \
                    alone";
        Finding::error(what, help)
    };
    let facts: Result<host::HostFacts, NetlinkError> =
        runtime::block_on_plain(host::observe(config))
            .map_err(|error| failed(error.to_string()))?;
    facts.map_err(|error| failed(error.to_string()))
}

/// Shows what is wrong with a file: drawn on standard error, or as JSON on standard output.
pub(super) fn show_errors(errors: &ConfigErrors, global: &Global) {
    if global.json {
        output::json(&RefusedReport { config: errors.file(), problems: errors.problems() });
        return;
    }
    let style = if output::coloured_errors() { RenderStyle::Coloured } else { RenderStyle::Plain };
    output::error_block(&errors.render(style));
    let count = errors.problems().len();
    let noun = if count == 1 { "mistake" } else { "mistakes" };
    output::error(&format!("{}: {count} {noun}", errors.file()));
}

fn report(config: &Config, global: &Global) -> Report {
    let (mut findings, key) = of_files(config);
    findings.sort_by_key(|f| f.severity);
    let memory = host::MemoryNeeds::of(config);
    Report {
        config: global.config.display().to_string(),
        hash: config_hash(config).to_string(),
        services_hash: services_hash(&config.services).to_string(),
        key_fingerprint: key,
        services: config.services.len(),
        real_servers: config.real_addresses().len(),
        findings,
        region_bytes: memory.region,
        index_bytes: memory.index,
        tables: placement_tables(config),
        paths: Vec::new(),
    }
}

/// What the configuration and its key file give rise to, and the key's fingerprint.
pub(super) fn of_files(config: &Config) -> (Vec<Finding>, Option<String>) {
    let mut findings = config.warnings();
    match LoadedKey::load(config.director.hash_key_file.as_deref()) {
        Ok(key) => {
            findings.extend(key.exposed());
            (findings, Some(key.fingerprint()))
        }
        Err(error) => {
            findings.push(Finding::error(error.to_string(), "adit run refuses it"));
            (findings, None)
        }
    }
}

fn placement_tables(config: &Config) -> Vec<PlacementTable> {
    let services = config.services.iter();
    services
        .filter_map(|service| {
            let members = service.reals.len();
            let slots = service.table_size()?;
            // The first size that holds one more member is where this one ends.
            let members_max = (members..=MEMBERS_MAX).take_while(|n| table_size(*n) == Ok(slots));
            let members_max = members_max.last().unwrap_or(members);
            Some(PlacementTable { service: service.name.clone(), members, slots, members_max })
        })
        .collect()
}

/// A table this full is about to be outgrown.
fn nearly_full(table: &PlacementTable) -> bool {
    table.members * 10 >= table.members_max * 9
}

fn show(report: &Report) {
    output::findings(&report.findings);
    if !report.paths.is_empty() {
        let mut table = TextTable::new(&[
            "Real server",
            "Tunnel",
            "Source",
            "By",
            "Next hop",
            ">MTU",
            "Egress",
        ]);
        for path in &report.paths {
            let text = |address: Option<IpAddr>| address.map_or("-".into(), |a| a.to_string());
            table.row([
                path.address.to_string(),
                path.tunnel.to_string(),
                output::sources(
                    path.tunnel == RealTunnel::Direct,
                    path.sources.first().copied(),
                    path.sources.len().saturating_sub(1),
                ),
                path.interface.clone().unwrap_or_else(|| "-".to_owned()),
                text(path.next_hop),
                path.mtu.to_string(),
                path.egress.to_string(),
            ]);
        }
        output::raw(table.render().as_bytes());
    }
    for table in report.tables.iter().filter(|t| nearly_full(t)) {
        output::line(&format!(
            "service {}: {} real servers of at most {} in a placement table of {} slots; with \
             more, nearly all clients are placed anew",
            table.service, table.members, table.members_max, table.slots
        ));
    }
    let mebibytes = |bytes: u64| bytes.div_ceil(1 << 20);
    output::line(&format!(
        "flow table: {} MiB in the region's file, {} MiB of index in memory",
        mebibytes(report.region_bytes),
        mebibytes(report.index_bytes)
    ));
    let count = |severity| finding::count(&report.findings, severity);
    output::line(&format!(
        "{}: {} services, {} real servers; {} errors, {} warnings",
        report.config,
        report.services,
        report.real_servers,
        count(Severity::Error),
        count(Severity::Warning),
    ));
    output::line(&format!(
        "config {}  services {}  hash key {}",
        report.hash,
        report.services_hash,
        report.key_fingerprint.as_deref().unwrap_or("none"),
    ));
}
