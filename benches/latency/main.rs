//! What the director adds to a round trip at low load: client, director, real server, and straight
//! back to the client, beside the same with the kernel's plain routing in the director's place.
//!
//! Blocks of round trips by the one way and by the other alternate in one run. What the real server
//! does is the same for both.

#![allow(clippy::print_stdout)] // results go to stdout
#![allow(clippy::missing_docs_in_private_items, missing_docs, unreachable_pub)] // a program

mod client;
mod director;
mod real_server;
mod report;
mod rig;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::sched::{CloneFlags, unshare};

use client::Client;
use report::Report;
use rig::Rig;

/// The director's core.
const DIRECTOR_CORE: usize = 0;
/// The core of client and real server; the kernel's routing happens there too.
const ENDS_CORE: usize = 1;

/// Round trips of a block: a quarter of a second at the standard rate, so that both ways see the same
/// weather.
const BLOCK: usize = 250;

#[derive(Parser)]
#[command(about = "Added latency of the director at low load, beside plain routing")]
struct Options {
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
    /// Results as JSON
    #[arg(long)]
    json: bool,
    /// Blocks of 250 round trips by each way
    #[arg(long, default_value_t = 40)]
    blocks: usize,
    /// Round trips that are begun per second
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Be the director (used by the bench itself)
    #[arg(long, hide = true)]
    director: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if options.director {
        match director::become_it()? {}
    }
    if !options.bench {
        println!("not measured: run it by `cargo bench --bench latency`");
        return Ok(());
    }
    ensure!(nix::unistd::geteuid().is_root(), "the bench needs root: it makes network namespaces");
    ensure!(std::thread::available_parallelism()?.get() >= 2, "the bench needs two cores");
    measure(&options)?.print(options.json)
}

fn measure(options: &Options) -> Result<Report> {
    ensure!(options.rate > 0 && options.blocks > 0, "nothing to measure");
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace")?;
    adit::io::pin_current_thread(ENDS_CORE)?;
    let rig = Rig::build()?;
    let _director = director::Running::start()?;
    let pause = Duration::from_secs(1) / options.rate;
    let routed = Client::new(&rig, rig::REAL)?;
    let balanced = Client::new(&rig, rig::VIP)?;
    // Until the director has found its way, and caches are warm.
    routed.until_answered()?;
    balanced.until_answered()?;
    let mut report = Report::new(options.rate);
    for client in [&routed, &balanced] {
        client.round_trips(BLOCK, pause)?;
    }
    for _ in 0..options.blocks {
        report.add(&routed.round_trips(BLOCK, pause)?, &balanced.round_trips(BLOCK, pause)?);
    }
    Ok(report)
}
