//! `adit-realserver`: makes a host a real server, and an ordinary host again.

mod generate;

use std::io::Write;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::process::ExitCode;

use adit_realserver::plan::{Desired, Mss, MssMethod, Outer, Step};
use adit_realserver::{effects, plan};
use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};

#[derive(Parser)]
#[command(version, about = "Prepares a Linux host as an LVS-TUN real server")]
struct Cli {
    #[command(subcommand)]
    task: Task,
    /// Print what was done as JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Task {
    /// Make this host serve the VIPs. May be repeated.
    Apply {
        #[command(flatten)]
        target: Target,
        /// MTU in bytes of the path from the directors, to clamp TCP segments to what fits behind
        /// the outer header; 0 leaves the segment size alone.
        #[arg(long, default_value_t = 1500)]
        path_mtu: u16,
    },
    /// Stop serving the VIPs.
    Remove {
        #[command(flatten)]
        target: Target,
    },
    /// Print a completion script for a shell.
    #[command(hide = true)]
    Completions {
        /// The shell to complete in.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages to a directory.
    #[command(hide = true)]
    Man {
        /// Directory for adit-realserver.8 and the rest; it must exist.
        directory: PathBuf,
    },
}

#[derive(Args)]
struct Target {
    /// Virtual IP; may be given several times. VIPs that are not given stay as they are.
    #[arg(long = "vip", required = true)]
    vips: Vec<IpAddr>,
    /// IP version of the directors' outer header.
    #[arg(long, value_enum, default_value_t = OuterVersion::V4)]
    outer: OuterVersion,
    /// This host's IPv6 address that directors send to, when it has several.
    #[arg(long)]
    local: Option<Ipv6Addr>,
}

#[derive(Clone, Copy, ValueEnum)]
enum OuterVersion {
    #[value(name = "ipv4")]
    V4,
    #[value(name = "ipv6")]
    V6,
}

impl Target {
    fn outer(&self) -> anyhow::Result<Outer> {
        Ok(match (self.outer, self.local) {
            (OuterVersion::V4, _) => Outer::V4,
            (OuterVersion::V6, Some(local)) => Outer::V6(local),
            (OuterVersion::V6, None) => Outer::V6(effects::own_address6()?),
        })
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match carry_out(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nowhere to say it when standard error is closed.
            let _ = writeln!(std::io::stderr(), "adit-realserver: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(cli: &Cli) -> anyhow::Result<()> {
    let steps = match &cli.task {
        Task::Apply { target, path_mtu } => {
            let mss = if *path_mtu == 0 { Mss::Unclamped } else { Mss::ForPathMtu(*path_mtu) };
            let method = match mss {
                Mss::Unclamped => MssMethod::Nftables,
                Mss::ForPathMtu(_) => effects::mss_method()?,
            };
            let desired = Desired { vips: target.vips.clone(), outer: target.outer()?, mss };
            plan::apply(&desired, &method, effects::tunnel6()?)?
        }
        Task::Remove { target } => {
            let mut others = effects::served()?;
            others.retain(|vip| !target.vips.contains(vip));
            plan::remove(&target.vips, target.outer()?, &others)
        }
        Task::Completions { shell } => return generate::completions(*shell),
        Task::Man { directory } => return generate::man(directory),
    };
    effects::carry_out(&steps)?;
    show(&steps, cli.json).context("print what was done")
}

fn show(steps: &[Step], json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::json!({ "done": steps }))?;
    } else {
        for step in steps {
            writeln!(out, "{step}")?;
        }
    }
    Ok(())
}
