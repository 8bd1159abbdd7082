//! The whole path, in packets a second: TAP to director to real server, 64-byte UDP packets.
//!
//! Adit's engines beside a plain read and send loop and a tokio-uring loop, interleaved in one run.
//! `cargo bench --bench path -- --help` says what can be chosen.

#![allow(clippy::print_stdout)] // results go to stdout
#![allow(clippy::missing_docs_in_private_items, missing_docs, unreachable_pub)] // a program

mod bpf;
mod contestants;
mod measure;
mod report;
mod topology;
mod wrap;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::sched::{CloneFlags, unshare};

use contestants::Contestant;
use measure::{Running, closed_loop};
use report::Report;
use topology::{Topology, client_frame};

/// The director's core; sending into the veth and dropping at its other end happen there too.
const DIRECTOR_CORE: usize = 0;
/// The generator's core, which also routes into the TAP.
const GENERATOR_CORE: usize = 1;
/// Different flows (UDP source ports).
const FLOWS: u16 = 1024;

#[derive(Parser)]
#[command(about = "Whole path in packets a second, beside loops that do nothing else")]
struct Options {
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
    /// Results as JSON
    #[arg(long)]
    json: bool,
    /// Only contestants whose name contains this
    #[arg(long)]
    only: Vec<String>,
    /// Times that each contestant is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Be this contestant (used by the bench itself)
    #[arg(long, hide = true)]
    contestant: Option<String>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(name) = &options.contestant {
        return Contestant::named(name).context("no such contestant")?.run();
    }
    if !options.bench {
        println!("not measured: run it by `cargo bench --bench path`");
        return Ok(());
    }
    ensure!(nix::unistd::geteuid().is_root(), "the bench needs root: it makes network namespaces");
    ensure!(std::thread::available_parallelism()?.get() >= 2, "the bench needs two cores");
    measure_all(&options)?.print(options.json)
}

fn measure_all(options: &Options) -> Result<Report> {
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace")?;
    adit::io::pin_current_thread(GENERATOR_CORE)?;
    let topology = Topology::build()?;
    let frame = client_frame();
    let generator = bpf::Generator::new(topology.incoming, topology.idle, frame, FLOWS)?;
    let sink = bpf::Sink::new(topology.sink, 64 + 20)?;

    let chosen = |name: &str| {
        options.only.is_empty() || options.only.iter().any(|part| name.contains(part.as_str()))
    };
    let contestants: Vec<Contestant> =
        Contestant::ALL.into_iter().filter(|contestant| chosen(&contestant.name())).collect();
    let time = Duration::from_secs_f64(options.seconds);
    let mut report = Report::default();
    for round in 0..options.rounds {
        for contestant in &contestants {
            let name = contestant.name();
            let figures = measure_one(&name, &generator, &sink, time)
                .with_context(|| format!("{name}, round {round}"))?;
            report.add(name, figures);
        }
    }
    Ok(report)
}

fn measure_one(
    name: &str,
    generator: &bpf::Generator,
    sink: &bpf::Sink,
    time: Duration,
) -> Result<measure::Figures> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--contestant", name]);
    let running = Running::start(command, generator, sink)?;
    // Caches, page faults and the scheduler settle.
    closed_loop(generator, sink, Duration::from_millis(200), running.id())?;
    closed_loop(generator, sink, time, running.id())
}
