//! `adit-realserver`: makes a host a real server, and an ordinary host again.

mod decapsulate;
mod generate;
mod report;

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, IsTerminal as _, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use adit_io::IoPreference;
use adit_realserver::config::{self, ConfigErrors, DEFAULT_FILE, Options};
use adit_realserver::desired::{Desired, Tunnel, VipDevice, WishError};
use adit_realserver::kernel::DECAP;
use adit_realserver::live::judge::Standing;
use adit_realserver::{host, live, networkd, verify};
use anyhow::Context as _;
use clap::error::ErrorKind as Usage;
use clap::{Args, CommandFactory as _, Parser, Subcommand};

#[derive(Parser)]
#[command(version, about = "Prepares a Linux host as an LVS-TUN real server")]
#[command(after_help = "Exit status: 0 fine, 1 refused or traffic would fail, 2 wrong usage. \
                        See docs/realserver.md.")]
struct Cli {
    #[command(subcommand)]
    task: Task,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Task {
    /// Show what apply would do, and do nothing.
    Plan {
        #[command(flatten)]
        target: Target,
    },
    /// Make this host serve the VIPs, and these only. May be repeated, also after an interruption.
    Apply {
        #[command(flatten)]
        target: Target,
    },
    /// Say what is in force, what it means, and how to mend what is wrong.
    Verify {
        #[command(flatten)]
        target: Target,
        /// Listen while a director sends probes too (adit probe), and tell where on the way they are
        /// lost. Ends when a whole exchange was seen of every VIP.
        #[arg(long)]
        live: bool,
        /// How long to listen at most: 30s.
        #[arg(long = "for", value_name = "TIME", default_value = "30s", requires = "live",
            value_parser = humantime::parse_duration)]
        limit: Duration,
        /// Port of the VIPs where to listen, as in adit probe.
        #[arg(long, value_name = "PORT", default_value_t = live::PORT, requires = "live",
            value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
    /// Leave this host as it was found before apply. Needs no configuration.
    Remove {
        /// Show what would be done, and do nothing.
        #[arg(long)]
        dry_run: bool,
        /// Not needed, and not read: what was changed is remembered.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Write the same as files for the system's own services: modules-load.d, sysctl.d,
    /// systemd-networkd, nftables.
    Networkd {
        #[command(flatten)]
        target: Target,
        /// Directory that stands for /etc.
        directory: PathBuf,
    },
    /// Unwrap in this process, for kernels and containers without ipip, until SIGTERM.
    ///
    /// Makes a device adit-decap0 and does for it what apply does for the kernel's. While it runs, plan,
    /// apply and verify are about that device.
    #[command(
        after_help = "SIGUSR1 has it say its counters. Of what is dropped a line is written to standard \
                            error each minute; --json prints all counters as JSON at the end and at SIGUSR1."
    )]
    Decap {
        #[command(flatten)]
        target: Target,
        /// How packets are received: auto, multishot (Linux 6.0 or later) or poll.
        #[arg(long, value_name = "ENGINE", default_value = "auto", value_parser = decapsulate::engine)]
        io: IoPreference,
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

/// Options go before the file, each in place of the file's whole list.
#[derive(Args)]
struct Target {
    /// Configuration file [default: /etc/adit/realserver.toml, if it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Virtual IP, or a prefix of them; may be given several times.
    #[arg(long = "vip", value_name = "ADDRESS", value_parser = vips)]
    vips: Vec<Vips>,
    /// Address that a director's tunnelled packets come from; may be given several times. Those of
    /// others are dropped.
    #[arg(long = "director", value_name = "ADDRESS", value_parser = director)]
    directors: Vec<IpAddr>,
    /// ipip, sit, ip6tnl, gre or gue; may be given several times [default: IP in IP for the IP versions
    /// of VIPs and directors].
    #[arg(long = "tunnel", value_name = "KIND", value_parser = tunnel)]
    tunnels: Vec<Tunnel>,
    /// MTU in bytes of the path from the directors, to limit TCP segments to what fits behind the
    /// outer header; 0 leaves the segment size alone [default: 1500].
    #[arg(long, value_name = "BYTES")]
    path_mtu: Option<u16>,
    /// Where VIPs are put: tunnel or lo [default: tunnel].
    #[arg(long, value_name = "DEVICE", value_parser = vip_device)]
    vip_device: Option<VipDevice>,
    /// This host's IPv6 address that directors send to, when it has several.
    #[arg(long, value_name = "ADDRESS")]
    local: Option<Ipv6Addr>,
    /// UDP port of GUE [default: 6080].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    gue_port: Option<u16>,
}

/// What one --vip stands for.
#[derive(Clone)]
struct Vips(Vec<IpAddr>);

fn said((message, help): (String, String)) -> String {
    format!("{message} ({help})")
}

fn vips(text: &str) -> Result<Vips, String> {
    config::parse_vips(text).map(Vips).map_err(said)
}

fn director(text: &str) -> Result<IpAddr, String> {
    config::parse_director(text).map_err(said)
}

fn tunnel(text: &str) -> Result<Tunnel, String> {
    config::parse_tunnel(text).map_err(said)
}

fn vip_device(text: &str) -> Result<VipDevice, String> {
    config::parse_vip_device(text).map_err(said)
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match carry_out(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let mut stderr = std::io::stderr();
            let coloured = stderr.is_terminal();
            // Nowhere to say it when standard error is closed.
            let _ = match error.downcast_ref::<ConfigErrors>() {
                Some(errors) => write!(stderr, "{errors}\n\n{}", errors.render(coloured)),
                None => writeln!(stderr, "adit-realserver: {error:#}"),
            };
            ExitCode::FAILURE
        }
    }
}

/// Returns whether all is fine.
fn carry_out(cli: &Cli) -> anyhow::Result<bool> {
    match &cli.task {
        Task::Plan { target } => {
            let desired = target.desired()?;
            let plan = host::preview(Some(&desired), &host::look()?)?;
            report::steps(&plan.steps, &plan.notes, cli.json)?;
        }
        Task::Apply { target } => {
            let done = host::carry_out(Some(&target.desired()?))?;
            report::steps(&done.steps, &done.notes, cli.json)?;
        }
        Task::Verify { target, live, limit, port } => {
            let desired = target.desired()?;
            let findings = if *live {
                listen(&desired, *port, *limit)?
            } else {
                verify::verify(&desired, &host::look()?)
            };
            report::findings(&findings, cli.json)?;
            return Ok(verify::is_fine(&findings));
        }
        Task::Remove { dry_run: true, .. } => {
            let plan = host::preview(None, &host::look()?)?;
            report::steps(&plan.steps, &plan.notes, cli.json)?;
        }
        Task::Remove { dry_run: false, .. } => {
            let done = host::carry_out(None)?;
            report::steps(&done.steps, &done.notes, cli.json)?;
        }
        Task::Networkd { target, directory } => {
            let files = networkd::files(&target.checked()?)?;
            for file in &files {
                write_file(&directory.join(&file.path), &file.text)?;
            }
            report::files(directory, &files, cli.json)?;
        }
        Task::Decap { target, io } => decapsulate::run(target.checked()?, *io, cli.json)?,
        Task::Completions { shell } => generate::completions(*shell)?,
        Task::Man { directory } => generate::man(directory)?,
    }
    Ok(true)
}

/// What is in force, and what is seen of a director's probes.
fn listen(desired: &Desired, port: u16, limit: Duration) -> anyhow::Result<Vec<verify::Finding>> {
    let evidence = live::session::run(desired, port, limit, || {
        // Where standard error is closed nobody waits there.
        let _ = writeln!(
            std::io::stderr(),
            "listening for {}: run adit probe with this host's address on the director",
            humantime::format_duration(limit)
        );
    })?;
    // As it is now: while it was listened somebody may have mended it.
    let observed = host::look()?;
    let mut findings = verify::verify(desired, &observed);
    let standing = Standing::of(desired, &observed, &findings, port);
    findings.extend(live::judge::judge(&evidence, &standing));
    Ok(findings)
}

/// Replaces a file, wholly or not at all: at boot, half a file is worse than none.
fn write_file(path: &Path, text: &str) -> anyhow::Result<()> {
    let write = || {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let new = path.with_extension("adit-new");
        fs::write(&new, text)?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

impl Target {
    /// What is wanted, by options and file, and by whether [`Task::Decap`] runs here.
    fn desired(&self) -> anyhow::Result<Desired> {
        let desired = self.checked()?;
        match adit_io::interface_index(DECAP) {
            Ok(_) => Ok(desired.in_userspace()?),
            Err(_) => Ok(desired),
        }
    }

    /// What is wanted, by options and file.
    fn checked(&self) -> anyhow::Result<Desired> {
        let file = match &self.config {
            Some(path) => read(path)?,
            None => match read(Path::new(DEFAULT_FILE)) {
                Err(error) if is_missing(&error) => Options::default(),
                file => file?,
            },
        };
        let options = self.options().over(file);
        if options.vips.is_empty() && self.config.is_none() && !Path::new(DEFAULT_FILE).exists() {
            let missing = format!("give --vip and --director, or write {DEFAULT_FILE}");
            Cli::command().error(Usage::MissingRequiredArgument, missing).exit();
        }
        Desired::new(options.wishes()).map_err(|error: WishError| error.into())
    }

    fn options(&self) -> Options {
        let vips: BTreeSet<_> = self.vips.iter().flat_map(|vips| &vips.0).copied().collect();
        Options {
            vips,
            directors: self.directors.iter().copied().collect(),
            tunnels: self.tunnels.iter().copied().collect(),
            path_mtu: self.path_mtu,
            vip_device: self.vip_device,
            local: self.local,
            gue_port: self.gue_port,
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Options> {
    let name = path.display().to_string();
    let text = fs::read_to_string(path).with_context(|| format!("read {name}"))?;
    Ok(config::parse(&name, &text)?)
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::NotFound)
}
