//! `adit check`: mistakes in the configuration and in the host's setup.

use super::{CommandError, Global, Outcome, load_config, output};
use crate::control::config::{
    Config, ConfigErrors, HashKey, RenderStyle, config_hash, services_hash,
};
use clap::Args;
use serde::Serialize;

/// `adit check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Look at the configuration only, not at this host.
    #[arg(long)]
    pub offline: bool,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Traffic would fail, or the director would not start.
    Error,
    /// Allowed, and perhaps not meant.
    Warning,
}

/// One thing `check` has to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// How much it matters.
    pub(crate) severity: Severity,
    /// What was seen.
    pub(crate) message: String,
    /// What it means and how to mend it.
    pub(crate) help: String,
}

impl Finding {
    pub(crate) fn new(
        severity: Severity,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Finding { severity, message: message.into(), help: help.into() }
    }
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
}

#[derive(Serialize)]
struct RefusedReport<'a> {
    config: &'a str,
    problems: &'a [crate::control::config::Problem],
}

pub(super) fn run(_args: &CheckArgs, global: &Global) -> Result<Outcome, CommandError> {
    let config = match load_config(&global.config) {
        Ok(config) => config,
        Err(CommandError::Config(errors)) => {
            show_errors(&errors, global);
            return Ok(Outcome::Refused);
        }
        Err(other) => return Err(other),
    };
    let report = report(&config, global);
    let refused = report.findings.iter().any(|f| f.severity == Severity::Error);
    if global.json {
        output::json(&report);
    } else {
        show(&report);
    }
    Ok(if refused { Outcome::Refused } else { Outcome::Fine })
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
    let mut findings: Vec<Finding> = config
        .warnings()
        .into_iter()
        .map(|w| Finding::new(Severity::Warning, w.message, w.help))
        .collect();
    let key = match HashKey::load(config.director.hash_key_file.as_deref()) {
        Ok(key) => Some(key.fingerprint()),
        Err(error) => {
            findings.push(Finding::new(Severity::Error, error.to_string(), "adit run refuses it"));
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
    }
}

fn show(report: &Report) {
    for finding in &report.findings {
        let word = match finding.severity {
            Severity::Error => "ERROR",
            Severity::Warning => "warning",
        };
        output::line(&format!("{word}: {}", finding.message));
        for line in finding.help.lines() {
            output::line(&format!("    {line}"));
        }
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
