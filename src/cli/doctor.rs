//! `adit doctor`: what is wrong with the host and the director on it.

use super::check;
use super::output;
use super::{CommandError, Global, Outcome, converse, load_config};
use crate::control::admin::api::{Drops, Services, Status};
use crate::control::config::{Config, config_hash};
use crate::control::finding::{self, Finding, Severity};
use crate::control::host::{self, HostFacts, live};
use hyper::Method;
use serde::Serialize;
use std::time::Duration;

#[derive(Serialize)]
struct Report {
    /// Seconds for which the director has been counting; absent where none answers.
    uptime_seconds: Option<u64>,
    findings: Vec<Finding>,
}

pub(super) fn run(global: &Global) -> Result<Outcome, CommandError> {
    let mut findings = Vec::new();
    let config = match load_config(&global.config) {
        Ok(config) => Some(config),
        Err(CommandError::Config(errors)) => {
            if !global.json {
                check::show_errors(&errors, global);
            }
            findings.push(Finding::error(
                format!("{} has mistakes: a restart or reload would be refused", errors.file()),
                "adit check",
            ));
            None
        }
        Err(other) => return Err(other),
    };
    let facts = match config.as_ref().map(check::host_facts) {
        Some(Ok(facts)) => facts,
        Some(Err(finding)) => {
            findings.push(finding);
            HostFacts::default()
        }
        None => HostFacts::default(),
    };
    if let Some(config) = &config {
        findings.extend(check::of_files(config).0);
        findings.extend(host::judge(config, &facts));
    }
    let running = match director(global) {
        Ok(running) => {
            findings.extend(live::diagnose(&running, &facts));
            findings
                .extend(config.as_ref().and_then(|config| other_config(config, &running.status)));
            Some(running)
        }
        Err(error) => {
            findings
                .push(Finding::error(error.to_string(), "the director itself was not looked at"));
            None
        }
    };
    findings.sort_by_key(|finding| finding.severity);
    // The host's second look may say what the director's last one said.
    findings.dedup();
    let report =
        Report { uptime_seconds: running.map(|live| live.status.uptime_seconds), findings };
    if global.json {
        output::json(&report);
    } else {
        show(&report);
    }
    let refused = finding::count(&report.findings, Severity::Error) > 0;
    Ok(if refused { Outcome::Refused } else { Outcome::Fine })
}

/// What the running director says of itself.
fn director(global: &Global) -> Result<live::LiveState, CommandError> {
    converse(global, |client| async move {
        let status: Status = client.ask(Method::GET, "/v1/status").await?;
        let Services { services } = client.ask(Method::GET, "/v1/services").await?;
        let Drops { drops } = client.ask(Method::GET, "/v1/drops").await?;
        Ok(live::LiveState { status, services, drops })
    })
}

/// Says so when the file is not what is in force.
fn other_config(config: &Config, status: &Status) -> Option<Finding> {
    (config_hash(config).to_string() != status.config_hash).then(|| {
        Finding::note(
            "the configuration file is not the one in force",
            "adit reload --dry-run shows the difference",
        )
    })
}

fn show(report: &Report) {
    output::findings(&report.findings);
    if let Some(seconds) = report.uptime_seconds {
        let up = humantime::format_duration(Duration::from_secs(seconds));
        output::line(&format!("the director has been running for {up}"));
    }
    let count = |severity| finding::count(&report.findings, severity);
    output::line(&format!(
        "{} errors, {} warnings, {} notes",
        count(Severity::Error),
        count(Severity::Warning),
        count(Severity::Note),
    ));
}
