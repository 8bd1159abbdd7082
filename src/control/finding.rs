//! What `adit check` and a running director have to say about a configuration and its host.

use serde::Serialize;
use std::fmt;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Traffic would fail, or the director would not start.
    Error,
    /// Allowed, and perhaps not meant.
    Warning,
    /// Good to know.
    Note,
}

/// One thing that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What was seen.
    pub message: String,
    /// What it means and how to mend it; commands on lines of their own.
    pub help: String,
}

impl Finding {
    /// A finding that makes traffic fail.
    pub fn error(message: impl Into<String>, help: impl Into<String>) -> Self {
        Finding { severity: Severity::Error, message: message.into(), help: help.into() }
    }

    /// A finding that is allowed and perhaps not meant.
    pub fn warning(message: impl Into<String>, help: impl Into<String>) -> Self {
        Finding { severity: Severity::Warning, message: message.into(), help: help.into() }
    }

    /// A finding that is good to know.
    pub fn note(message: impl Into<String>, help: impl Into<String>) -> Self {
        Finding { severity: Severity::Note, message: message.into(), help: help.into() }
    }
}

impl Severity {
    /// The word programs read.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

/// How many findings matter so much.
#[must_use]
pub fn count(findings: &[Finding], severity: Severity) -> usize {
    findings.iter().filter(|finding| finding.severity == severity).count()
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "ERROR",
            Severity::Warning => "warning",
            Severity::Note => "note",
        })
    }
}
