//! `adit check`: mistakes in the configuration and in the host's setup.

use super::output::{self, TextTable};
use super::{CommandError, Global, Outcome, load_config};
use crate::control::config::{
    Config, ConfigErrors, LoadedKey, RenderStyle, config_hash, services_hash,
};
use crate::control::finding::{Finding, Severity};
use crate::control::netlink::NetlinkError;
use crate::control::netlink::egress::RealPath;
use crate::control::{host, runtime};
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
    /// The way to each real server; empty with `--offline`.
    paths: Vec<RealPath>,
}

#[derive(Serialize)]
struct RefusedReport<'a> {
    config: &'a str,
    problems: &'a [crate::control::config::Problem],
}

pub(super) fn run(args: &CheckArgs, global: &Global) -> Result<Outcome, CommandError> {
    let config = match load_config(&global.config) {
        Ok(config) => config,
        Err(CommandError::Config(errors)) => {
            show_errors(&errors, global);
            return Ok(Outcome::Refused);
        }
        Err(other) => return Err(other),
    };
    let mut report = report(&config, global);
    if !args.offline {
        let (findings, paths) = look_at_host(&config);
        report.findings.extend(findings);
        report.findings.sort_by_key(|f| f.severity);
        report.paths = paths;
    }
    let refused = report.findings.iter().any(|f| f.severity == Severity::Error);
    if global.json {
        output::json(&report);
    } else {
        show(&report);
    }
    Ok(if refused { Outcome::Refused } else { Outcome::Fine })
}

fn look_at_host(config: &Config) -> (Vec<Finding>, Vec<RealPath>) {
    let failed = |what: String| {
        let help = "the rest of the host was not looked at; --offline checks the file alone";
        (vec![Finding::error(what, help)], Vec::new())
    };
    let facts: Result<host::HostFacts, NetlinkError> =
        match runtime::block_on(host::observe(config)) {
            Ok(facts) => facts,
            Err(error) => return failed(error.to_string()),
        };
    match facts {
        Ok(facts) => (host::judge(config, &facts), facts.survey.paths),
        Err(error) => failed(error.to_string()),
    }
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
    let mut findings: Vec<Finding> =
        config.warnings().into_iter().map(|w| Finding::warning(w.message, w.help)).collect();
    let key = match LoadedKey::load(config.director.hash_key_file.as_deref()) {
        Ok(key) => Some(key.fingerprint()),
        Err(error) => {
            findings.push(Finding::error(error.to_string(), "adit run refuses it"));
            None
        }
    };
    findings.sort_by_key(|f| f.severity);
    Report {
        config: global.config.display().to_string(),
        hash: config_hash(config).to_string(),
        services_hash: services_hash(&config.services).to_string(),
        key_fingerprint: key,
        services: config.services.len(),
        real_servers: config.real_addresses().len(),
        findings,
        paths: Vec::new(),
    }
}

fn show(report: &Report) {
    for finding in &report.findings {
        output::line(&format!("{}: {}", finding.severity, finding.message));
        for line in finding.help.lines() {
            output::line(&format!("    {line}"));
        }
    }
    if !report.paths.is_empty() {
        let mut table =
            TextTable::new(&["Real server", "Source", "By", "Next hop", ">MTU", "Egress"]);
        for path in &report.paths {
            let text = |address: Option<IpAddr>| address.map_or("-".into(), |a| a.to_string());
            table.row([
                path.address.to_string(),
                text(path.source),
                path.interface.clone().unwrap_or_else(|| "-".to_owned()),
                text(path.next_hop),
                path.mtu.to_string(),
                path.egress.to_string(),
            ]);
        }
        output::raw(table.render().as_bytes());
    }
    let count = |severity| report.findings.iter().filter(|f| f.severity == severity).count();
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
