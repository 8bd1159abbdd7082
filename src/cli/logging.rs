//! Where the daemon's log goes: to journald under systemd, else to standard error.

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::prelude::*;

/// Starts logging at `level`: `info`, or a filter such as `adit::control=debug,info`.
///
/// # Errors
/// When the filter is not one, in words.
pub(super) fn start(level: &str) -> Result<(), String> {
    // The netlink crates warn of every attribute a newer kernel has more than they know.
    let quiet = "netlink_packet_route=error,netlink_proto=error,rtnetlink=error";
    let filter = EnvFilter::try_new(format!("{quiet},{level}"))
        .map_err(|error| format!("--log {level}: {error}; use error, warn, info or debug"))?;
    let registry = tracing_subscriber::registry().with(filter);
    // systemd sets this for services whose output goes to the journal (sd-daemon(3)).
    let journal = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    let started = match journal {
        Some(journal) => registry.with(journal).try_init(),
        None => {
            let colours = super::output::coloured_errors();
            let lines = tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(colours)
                .with_target(false);
            registry.with(lines).try_init()
        }
    };
    started.map_err(|error| error.to_string())
}
