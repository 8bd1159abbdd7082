//! What is printed.

use std::io::Write as _;
use std::path::Path;

use adit_realserver::networkd::ConfigFile;
use adit_realserver::step::Step;
use adit_realserver::verify::{Finding, Severity, is_fine};
use anyhow::Context as _;
use serde_json::{Value, json};

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().lock().write_all(text.as_bytes()).context("print what was done")
}

/// Steps that change the host; writing down what was found is no change.
pub(crate) fn steps(steps: &[Step], notes: &[String], json: bool) -> anyhow::Result<()> {
    let changes: Vec<_> = steps.iter().filter(|step| step.changes_host()).collect();
    if json {
        let entry = |step: &&Step| json!({ "step": step, "text": step.to_string() });
        let steps: Vec<Value> = changes.iter().map(entry).collect();
        let all = json!({ "changed": !changes.is_empty(), "steps": steps, "notes": notes });
        return print(&format!("{all}\n"));
    }
    let mut text = String::new();
    for step in &changes {
        text.push_str(&format!("{step}\n"));
    }
    if changes.is_empty() {
        text.push_str("nothing to change\n");
    }
    for note in notes {
        text.push_str(&format!("note: {note}\n"));
    }
    print(&text)
}

/// What `verify` found.
pub(crate) fn findings(findings: &[Finding], json: bool) -> anyhow::Result<()> {
    if json {
        return print(&format!("{}\n", json!({ "ok": is_fine(findings), "findings": findings })));
    }
    let mut text = String::new();
    for finding in findings {
        let Finding { name, severity, observed, expected, meaning, mend } = finding;
        text.push_str(&format!("{:<8} {name}: {observed}\n", severity.name()));
        if *severity > Severity::Note && !expected.is_empty() {
            text.push_str(&format!("         should be: {expected}\n"));
        }
        text.push_str(&format!("         {meaning}\n"));
        if !mend.is_empty() {
            text.push_str(&format!("         mend: {mend}\n"));
        }
    }
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    text.push_str(&match errors {
        0 => "this host is a real server\n".to_owned(),
        1 => "1 error\n".to_owned(),
        errors => format!("{errors} errors\n"),
    });
    print(&text)
}

/// What `networkd` wrote.
pub(crate) fn files(directory: &Path, files: &[ConfigFile], json: bool) -> anyhow::Result<()> {
    let paths: Vec<_> =
        files.iter().map(|file| directory.join(&file.path).display().to_string()).collect();
    if json {
        return print(&format!("{}\n", json!({ "files": paths })));
    }
    print(&format!(
        "{}\n\nThey take effect at the next boot, in this order. The last one has to be included in \
         /etc/nftables.conf.\n",
        paths.join("\n")
    ))
}
