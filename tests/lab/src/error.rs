//! What can go wrong in the lab, always with what was being done.

use std::fmt;
use std::io;
use std::time::Duration;

/// An error of the lab.
#[derive(thiserror::Error)]
pub enum LabError {
    /// A system call or file operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's error.
        source: io::Error,
    },
    /// A command ran and said no, or an answer was not what it must be.
    #[error("{what} failed: {detail}")]
    Failed {
        /// What was being done.
        what: String,
        /// Exit status and output, or what was wrong with the answer.
        detail: String,
    },
    /// A condition did not come true in time.
    #[error("{what}: not within {after:?}")]
    Timeout {
        /// The condition that was waited for.
        what: String,
        /// The time that was allowed.
        after: Duration,
    },
    /// A database session was refused or broke.
    #[error("{what}: {source}")]
    Postgres {
        /// What was being done.
        what: String,
        /// The client library's error.
        source: tokio_postgres::Error,
    },
}

/// As [`Display`](fmt::Display): tests unwrap, and commands' output is unreadable when escaped.
impl fmt::Debug for LabError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Result of lab operations.
pub type Result<T> = std::result::Result<T, LabError>;

impl LabError {
    /// A refusal with its detail.
    pub fn failed(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Failed { what: what.into(), detail: detail.into() }
    }
}

/// Adds what was being done to an error of the system or of the database client.
pub trait Context<T> {
    /// Names the operation; only called on errors.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| LabError::Io { what: what(), source })
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| LabError::Io { what: what(), source: errno.into() })
    }
}

impl<T> Context<T> for std::result::Result<T, tokio_postgres::Error> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| LabError::Postgres { what: what(), source })
    }
}

impl<T> Context<T> for serde_json::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| LabError::failed(what(), error.to_string()))
    }
}
