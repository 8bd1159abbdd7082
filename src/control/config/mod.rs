//! The configuration file: text in, checked types out.
//!
//! [`parse`] is a pure function. It reads no file, no clock and no environment, so it can be
//! fuzzed and tested with tables. Whatever depends on the host (does the interface exist, is the
//! key file readable) is asked later, by `adit check` and at start.
//!
//! Invariant: the rest of the program never sees an unchecked value. A [`Config`] that exists has
//! passed every rule of this module.

mod check;
mod conflicts;
mod error;
mod hash;
mod hash_key;
mod limits;
mod reader;
mod sections;
mod service;
mod tunnel;
mod types;

pub use error::{ConfigErrors, Problem, RenderStyle};
pub use hash::{ConfigHash, config_hash, services_hash};
pub use hash_key::{HashKeyError, HashKeyOrigin, LoadedKey};
pub(super) use limits::{
    CHECK_DOWN_INTERVAL, CHECK_INTERVAL, CHECK_STREAK, CHECK_TIMEOUT, DEFAULT_TAP, DurationBounds,
    MAX_CONFIG_BYTES, MAX_VIP_HOST_BITS, PERSISTENCE, TCP_ESTABLISHED, TCP_FIN, THRESHOLD, UDP,
    WEIGHT,
};
pub use limits::{
    DEFAULT_CONFIG_PATH, DEFAULT_SOCKET, DEFAULT_STATE_DIR, MAX_REALS, MAX_SERVICES, MAX_VIPS,
    MAX_WORKERS, PROBE_PORTS,
};
pub use tunnel::{RealTunnel, TunnelKind};
pub use types::{
    Announce, Capture, Check, CheckKind, ClientLimit, Config, Director, DontFragment, Health,
    Initial, IoEngine, Limits, NewFlows, Persistence, Ports, Protocol, Real, Scheduler, Service,
    ServiceLimits, Timeouts, Tunnel, VipPrefix,
};

pub(super) use sections::interface_name;
pub(super) use service::{label, not_unicast};

use reader::{Problems, Table};
use std::path::PathBuf;
use toml::de::DeTable;

/// Reads a configuration.
///
/// `file_name` is only used to name the file in errors.
///
/// # Errors
/// All problems found, each with its place in `text`. Syntax errors hide the rest: a file that is
/// not TOML is not looked at further.
pub fn parse(text: &str, file_name: &str) -> Result<Config, ConfigErrors> {
    let problems = Problems::default();
    if text.len() > limits::MAX_CONFIG_BYTES {
        problems.at(
            0..0,
            format!("the file has {} bytes", text.len()),
            format!("at most {} bytes are read", limits::MAX_CONFIG_BYTES),
        );
        return Err(problems.into_errors(file_name, ""));
    }
    let (document, syntax) = DeTable::parse_recoverable(text);
    if !syntax.is_empty() {
        for error in syntax.iter().take(limits::MAX_SYNTAX_ERRORS) {
            problems.syntax(error);
        }
        return Err(problems.into_errors(file_name, text));
    }
    let span = document.span();
    let root = Table::new(document.get_ref(), span, String::new(), &problems);
    let config = sections::read(root, &problems);
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(problems.into_errors(file_name, text)),
    }
}

/// The admin socket that a text names, whatever else is wrong with it: a command that is to say
/// that the file is refused has to find the director first.
#[must_use]
pub fn socket_of(text: &str) -> Option<PathBuf> {
    let (document, _) = DeTable::parse_recoverable(text);
    let director = document.get_ref().get("director")?.get_ref().as_table()?;
    director.get("socket")?.get_ref().as_str().map(PathBuf::from)
}

#[cfg(test)]
mod tests;
