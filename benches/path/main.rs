//! The whole path, in packets a second: TAP to director to real server, 64-byte packets.
//!
//! Adit's engines beside a plain read and send loop and a tokio-uring loop, and beside themselves when
//! each packet begins a connection, interleaved in one run.
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

use bpf::{Flows, Generator};
use contestants::{Contestant, director};
use measure::{Running, closed_loop};
use report::Report;
use topology::{Topology, client_frame, syn_frame};

/// The director's core; sending into the veth and dropping at its other end happen there too.
const DIRECTOR_CORE: usize = 0;
/// The generator's core, which also routes into the TAP.
const GENERATOR_CORE: usize = 1;
/// Different flows (UDP source ports), where not every packet is of a new one.
const FLOWS: u16 = 1024;
/// Of the packets that a director receives, the least share that must have begun a connection where
/// all should.
const NEW_SHARE: f64 = 0.99;

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
    let generator = |frame, flows| {
        // One on the idle interface at a time, where it is attached only to be attached.
        Generator::new(topology.incoming, topology.idle, frame, flows)
    };
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
            let generator = if contestant.takes_new_flows() {
                generator(syn_frame(), Flows::EverNew)?
            } else {
                generator(client_frame(), Flows::Few(FLOWS))?
            };
            let figures = measure_one(*contestant, &generator, &sink, time)
                .with_context(|| format!("{name}, round {round}"))?;
            report.add(name, figures);
        }
    }
    Ok(report)
}

fn measure_one(
    contestant: Contestant,
    generator: &Generator,
    sink: &bpf::Sink,
    time: Duration,
) -> Result<measure::Figures> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--contestant", &contestant.name()]);
    let running = Running::start(command, generator, sink)?;
    // Caches, page faults and the scheduler settle.
    closed_loop(generator, sink, Duration::from_millis(200), running.id())?;
    let figures = closed_loop(generator, sink, time, running.id())?;
    if contestant.takes_new_flows() {
        let (received, scheduled) = director::received_and_scheduled()?;
        ensure!(
            scheduled as f64 >= received as f64 * NEW_SHARE,
            "of {received} packets only {scheduled} began a connection"
        );
    }
    Ok(figures)
}
