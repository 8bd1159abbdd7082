//! What other balancers were told, as a configuration of this one: the rules that `ipvsadm -S -n`
//! prints, and keepalived.conf.
//!
//! Pure functions: bytes in, a configuration and a [`Report`] out. Nothing is dropped silently:
//! each word of the input is either part of the configuration or spoken of in the report, and
//! the text that comes out was read again by `config::parse`.

mod address;
mod choices;
mod draft;
mod forwarding;
mod ipvsadm;
pub mod keepalived;
mod ledger;
mod remarks;
mod report;
mod schedulers;
mod thresholds;
mod write;

pub use report::{Entry, Kind, Report, WordCount};
pub use schedulers::supported as supported_schedulers;

use super::config::{self, ConfigErrors, DEFAULT_TAP, MAX_CONFIG_BYTES, Ports};
use draft::{Settled, Timeouts};
use ledger::Ledger;
use report::Remark;

/// Longest input that is read: as long as the longest configuration that would come of it.
pub const MAX_INPUT_BYTES: usize = MAX_CONFIG_BYTES;

/// What the input does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The interface that faces the clients, as [`interface`] takes it.
    pub interface: Option<String>,
    /// For which host conditional lines (`@name …`) of a keepalived.conf are taken.
    pub config_id: Option<String>,
    /// Put the report into the configuration, as comments.
    pub report_in_comments: bool,
}

/// A configuration and what had no equal in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The text of the configuration.
    pub config: String,
    /// What was not simply taken over.
    pub report: Report,
}

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The input is not what it should be.
    #[error(transparent)]
    Syntax(#[from] Box<ConfigErrors>),
    /// With the report in it the configuration is too long.
    #[error(
        "the report has {0} bytes and does not fit into the configuration; leave it on standard \
         error"
    )]
    ReportTooLong(usize),
    /// The configuration that was made is refused, or means something else.
    #[error(
        "the imported configuration is not what it should be, which is a mistake of this program; \
         please report it with the file: {0}"
    )]
    Mistake(String),
}

/// Where a configuration comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Rules that `ipvsadm -S -n` printed.
    Ipvsadm,
    /// A keepalived.conf.
    Keepalived,
}

impl Source {
    /// As the command line says it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Source::Ipvsadm => "ipvsadm",
            Source::Keepalived => "keepalived",
        }
    }
}

/// An interface's name that may stand in a configuration with the default `tap`.
///
/// # Errors
/// What is wrong with it.
pub fn interface(text: &str) -> Result<String, String> {
    if text == DEFAULT_TAP {
        return Err(format!("{DEFAULT_TAP} is the device Adit makes"));
    }
    config::interface_name("interface", text)
        .map_err(|(message, help)| format!("{message}: {help}"))
}

/// What a reader of one kind of input found.
#[derive(Debug, Default)]
struct Found {
    services: Vec<draft::Service>,
    timeouts: Timeouts,
    /// Interfaces the input names, for other purposes.
    interfaces: Vec<String>,
}

/// Imports the rules or the configuration of another balancer.
///
/// `file` only names the input in errors, comments and the report.
///
/// # Errors
/// When the input is not text of the kind it should be; what only has no equal is reported.
pub fn import(
    source: Source,
    input: &[u8],
    file: &str,
    options: &Options,
) -> Result<Imported, ImportError> {
    let text = text_of(input, file)?;
    let mut ledger = Ledger::default();
    let found = match source {
        Source::Ipvsadm => ipvsadm::read(text, file, &mut ledger),
        Source::Keepalived => {
            keepalived::read(text, file, options.config_id.as_deref(), &mut ledger)
        }
    };
    let found = found.map_err(Box::new)?;
    let services = draft::settle(found.services, &mut ledger);
    if options.interface.is_none() {
        ledger.note(None, None, "interface".to_owned(), missing_interface(&found.interfaces));
    }
    let (entries, words) = ledger.close();
    let active = || services.iter().filter(|service| !service.commented);
    let report = Report {
        file: file.to_owned(),
        services: active().count(),
        real_servers: active().map(|service| write::expected(service).len()).sum(),
        words,
        entries,
    };
    let report_text = options.report_in_comments.then(|| report.text());
    let written = write::Written {
        source,
        file,
        timeouts: found.timeouts,
        services: &services,
        report: report_text.as_deref(),
    };
    let config = write::config(&written, options);
    if config.len() > MAX_CONFIG_BYTES {
        return Err(ImportError::ReportTooLong(report_text.map_or(0, |text| text.len())));
    }
    verify(&written, &config, options)?;
    Ok(Imported { config, report })
}

/// The input as text.
fn text_of<'t>(input: &'t [u8], file: &str) -> Result<&'t str, Box<ConfigErrors>> {
    let refuse = |at: usize, message: String, help: &str| {
        // A terminal would make anything of a byte 0.
        let text = String::from_utf8_lossy(input).replace('\0', " ");
        // Up to `at` everything is text, so that the place is the same in the lossy one.
        Err(Box::new(ConfigErrors::one(file, &text, at..at + 1, message, help)))
    };
    if input.len() > MAX_INPUT_BYTES {
        let message = format!("the file has more than {MAX_INPUT_BYTES} bytes");
        let help = "a director cannot hold as many services; is this the right file?";
        return Err(Box::new(ConfigErrors::one(file, "", 0..0, message, help)));
    }
    let text = match std::str::from_utf8(input) {
        Ok(text) => text,
        Err(error) => {
            let at = error.valid_up_to();
            let message = format!("the byte {:#04x} is not text", input[at]);
            return refuse(at, message, "save the file as UTF-8");
        }
    };
    match text.find('\0') {
        Some(at) => refuse(at, "a byte 0 is not text".to_owned(), "is this the right file?"),
        None => Ok(text),
    }
}

fn missing_interface(named: &[String]) -> Remark {
    let name = named.first().map_or("eth0", String::as_str);
    let instead = if named.is_empty() {
        "name it: --interface eth0".to_owned()
    } else {
        format!("name it; the file speaks of {}: --interface {name}", named.join(", "))
    };
    Remark::new(Kind::Missing, "the file does not say which interface faces the clients", instead)
}

/// Reads the text again as `adit check` would, and compares what comes back.
fn verify(written: &write::Written<'_>, text: &str, options: &Options) -> Result<(), ImportError> {
    let filled;
    let text = if options.interface.is_some() {
        text
    } else {
        let interface = Some("eth0".to_owned());
        filled = write::config(written, &Options { interface, ..options.clone() });
        &filled
    };
    let config = config::parse(text, "the imported configuration")
        .map_err(|errors| ImportError::Mistake(errors.to_string()))?;
    let mut right: Vec<&Settled> = written.services.iter().filter(|s| !s.commented).collect();
    // As `parse` orders them.
    right.sort_by(|a, b| a.name.cmp(&b.name));
    let same = right.len() == config.services.len()
        && right.iter().zip(&config.services).all(|(right, read)| {
            let ports = right.port.map_or(Ports::Any, Ports::Exact);
            let persistence = read.persistence.as_ref().map(|persistence| {
                let v4 = read.vip.is_ipv4();
                let prefix = if v4 { persistence.ipv4_prefix } else { persistence.ipv6_prefix };
                draft::Persistence { timeout: persistence.timeout, prefix }
            });
            let scheduler = (read.scheduler, &read.scheduler_flags);
            (&right.name, right.vip, &ports, right.protocol, right.persistence)
                == (&read.name, read.vip, &read.ports, read.protocol, persistence)
                && (right.scheduler.kind, &right.scheduler.flags) == scheduler
                && (right.one_packet, right.check) == (read.one_packet, read.check)
                && write::expected(right) == read.reals
        });
    if same { Ok(()) } else { Err(ImportError::Mistake("it reads otherwise".to_owned())) }
}
