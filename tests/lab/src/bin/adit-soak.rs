//! `make soak`: everything at once on one director, for as long as one likes.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_lab::soak::{Options, Summary, run};
use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// Loads a director with sessions, floods, changes and restarts, and looks every second whether its
/// books balance and it stays as small as it was.
///
/// Exits with 1 when a session broke, a packet is unaccounted for, the director grew, or it did
/// something else that it must not; with 130 when it was interrupted before it found any of it.
#[derive(Debug, Parser)]
#[command(name = "adit-soak")]
struct Arguments {
    /// How long the load lasts.
    #[arg(long, value_name = "S", default_value_t = 600,
        value_parser = clap::value_parser!(u64).range(10..))]
    seconds: u64,
    /// Where the sequence of steps and bytes starts [default: the time of day].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Print the summary as JSON on standard output, and progress on standard error.
    #[arg(long)]
    json: bool,
}

/// By signals 2 and 15, as shells count.
const EXIT_INTERRUPTED: u8 = 130;

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => time_of_day()?,
    };
    let options = Options { time: Duration::from_secs(arguments.seconds), seed };
    let interrupted = Arc::new(AtomicBool::new(false));
    watch_signals(Arc::clone(&interrupted))?;
    let json = arguments.json;
    let mut progress = |line: &str| {
        // Where nobody listens any more, the load goes on for the exit code.
        let _ = match json {
            true => writeln!(std::io::stderr(), "{line}"),
            false => writeln!(std::io::stdout(), "{line}"),
        };
    };
    let summary = run(options, &interrupted, &mut progress)?;
    let text = if json { serde_json::to_string_pretty(&summary)? } else { told(&summary) };
    writeln!(std::io::stdout(), "{text}").context("print the summary")?;
    Ok(match (summary.violations.is_empty(), summary.interrupted) {
        (false, _) => ExitCode::FAILURE,
        (true, true) => ExitCode::from(EXIT_INTERRUPTED),
        (true, false) => ExitCode::SUCCESS,
    })
}

#[allow(clippy::disallowed_methods, reason = "a seed that differs from the last one's")]
fn time_of_day() -> anyhow::Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// The first signal ends the load, and a summary follows; the second ends the process, and the lab's
/// reaper cleans up.
fn watch_signals(interrupted: Arc<AtomicBool>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = {
        let _inside = runtime.enter();
        [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]
    };
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let [interrupt, terminate] = &mut signals;
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if interrupted.swap(true, Ordering::Relaxed) {
                    std::process::exit(i32::from(EXIT_INTERRUPTED));
                }
            }
        });
    });
    Ok(())
}

fn told(summary: &Summary) -> String {
    let steps: Vec<String> =
        summary.steps.iter().map(|(step, count)| format!("{step} {count}")).collect();
    let mut lines = vec![
        String::new(),
        format!(
            "sessions:  {} long-lived, {} bytes there and back; {} short; {} broken",
            summary.sessions, summary.echoed_bytes, summary.short_sessions, summary.broken_sessions
        ),
        format!(
            "datagrams: {} answered, {} of them in fragments; {} lost",
            summary.datagrams, summary.datagrams_fragmented, summary.datagrams_lost
        ),
        format!("floods:    {} frames of junk, {} SYNs", summary.junk_frames, summary.flood_syns),
        format!("steps:     {}", steps.join(", ")),
        format!(
            "packets:   {} received, {} forwarded, {} dropped; ledger right in {} of {} looks",
            summary.received,
            summary.forwarded,
            summary.dropped,
            summary.ledger_right,
            summary.ledger_right + summary.unanswered_looks
        ),
        format!("memory:    {}", summary.grown),
        format!("seed:      {}", summary.seed),
    ];
    if summary.interrupted {
        lines.push("interrupted".to_owned());
    }
    match summary.violations.len() {
        0 => lines.push("nothing is wrong".to_owned()),
        count => lines.push(format!("{count} VIOLATIONS:")),
    }
    lines.extend(summary.violations.iter().map(|what| format!("  {what}")));
    lines.join("\n")
}
