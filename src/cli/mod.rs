//! The command line: what can be asked, and how answers are shown.

mod check;
mod doctor;
mod drain;
mod explain;
mod firewall;
mod generate;
mod health;
mod import;
mod live;
mod logging;
mod metrics;
pub mod output;
mod probe;
mod rate;
mod reload;
mod run;
mod top;
mod version;

use crate::control::admin::client::{Client, ClientError};
use crate::control::admin::server::read_only_socket;
use crate::control::config::{
    Config, ConfigErrors, DEFAULT_CONFIG_PATH, DEFAULT_SOCKET, socket_of,
};
use clap::{Args, Parser, Subcommand};
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Layer-4 load balancer that tunnels each packet, IP in IP, to a real server, which answers the
/// client directly (as LVS-TUN does).
///
/// Describe services in one TOML file, look at it with `adit check`, start with `adit run`.
#[derive(Debug, Parser)]
#[command(name = "adit", version, propagate_version = true, arg_required_else_help = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_CONFIG_PATH)]
    pub config: PathBuf,
    /// Socket of the running director's admin interface [default: the configuration's, or
    /// /run/adit/adit.sock].
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print JSON, for programs.
    #[arg(long, global = true)]
    pub json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look for mistakes in the configuration and in this host's setup.
    ///
    /// Prints what it found, what it means and how to mend it. Exits with 1 when traffic would
    /// fail.
    Check(check::CheckArgs),
    /// Let this host's firewall accept what the configuration needs, and take that back.
    ///
    /// For chains that drop what they do not know. `adit check` shows the same rules.
    #[command(subcommand)]
    Firewall(firewall::FirewallCommand),
    /// Start the director and stay in the foreground.
    ///
    /// Makes the TAP, leads the VIPs to it and forwards until it gets SIGTERM. SIGHUP reloads the
    /// configuration. Connections survive a restart, also after `kill -9`.
    Run(run::RunArgs),
    /// Put the changed configuration file in force.
    ///
    /// A file with mistakes is refused as a whole. Real servers that were taken out drain: their
    /// connections go on to their end.
    Reload(reload::ReloadArgs),
    /// Keep a real server from new connections; those there are go on to their end.
    ///
    /// It stays so until `adit undrain`, over reloads and restarts. With --deadline or --wait it waits
    /// until no session remains; at the deadline nothing is cut, and it exits with 1. Where a
    /// service would have nobody left for new connections it refuses, without --force.
    Drain(drain::DrainArgs),
    /// Take back what `adit drain` did: the real server gets new connections again.
    Undrain(drain::UndrainArgs),
    /// Show services and their real servers, as `ipvsadm -Ln` does.
    List(live::ListArgs),
    /// Show connections.
    #[command(visible_alias = "conns")]
    Connections(live::ConnectionsArgs),
    /// Try the way to a real server through its tunnel, and what comes back.
    ///
    /// Connects to the service's VIP and port at that real server, as a health check does, and has
    /// `adit-realserver verify --live` there send and take full packets: each says what it saw. Exits
    /// with 1 when a step has failed.
    Probe(probe::ProbeArgs),
    /// Say what is wrong, of this host and of the director that runs on it, and how to mend it.
    ///
    /// Everything that `check` says of the host, and what the director's state shows: next hops,
    /// path MTUs, full queues, a full table, forged errors. Exits with 1 when traffic fails.
    Doctor,
    /// Show where a client's packets go, and why.
    ///
    /// Asks the running director; with --offline the configuration file alone, without a
    /// director, which is what a new flow would get there.
    Explain(explain::ExplainArgs),
    /// Show why packets were dropped.
    Drops(live::DropsArgs),
    /// Watch the director: services, real servers, rates, drops and what is wrong.
    ///
    /// Needs no more than the socket for those who may look and change nothing. `?` shows the keys.
    Top(top::TopArgs),
    /// Print metrics for Prometheus.
    ///
    /// The director can also serve them over HTTP: `metrics` in [director].
    Metrics(metrics::MetricsArgs),
    /// Write packets of both sides of the tunnel to a pcap file.
    ///
    /// Direct egress may be invisible to tcpdump on this host; this is not.
    Capture(live::CaptureArgs),
    /// Make a configuration of what IPVS or keepalived was told.
    ///
    /// What has no equal is reported, with its line and what to do instead; nothing is dropped
    /// silently.
    Import(import::ImportArgs),
    /// Show the version, and the configuration's hash where there is one.
    Version,
    /// Print a completion script for a shell.
    Completions(generate::CompletionsArgs),
    /// Write the manual pages to a directory.
    #[command(hide = true)]
    Man(generate::ManArgs),
}

/// How a command ended that could be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Fine,
    /// Refused, and the reason was printed.
    Refused,
}

/// Why a command could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The configuration file cannot be read.
    #[error("cannot read {path}: {source}")]
    ReadConfig {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file to import cannot be read.
    #[error("cannot read {path}: {source}")]
    ReadImport {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file to write to is there already.
    #[error("{0} is there already; --force overwrites it")]
    Exists(PathBuf),
    /// Nothing could be imported.
    #[error(transparent)]
    Import(#[from] crate::control::import::ImportError),
    /// The configuration has errors: [`run`] shows them.
    #[error("{path} is refused", path = .0.file())]
    Config(Box<ConfigErrors>),
    /// The director does not answer, or refuses.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No runtime for a conversation.
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
    /// The control runtime.
    #[error(transparent)]
    Control(#[from] crate::control::runtime::RuntimeError),
    /// The director ended.
    #[error(transparent)]
    Daemon(#[from] Box<crate::control::daemon::DaemonError>),
    /// The hash key.
    #[error(transparent)]
    Key(#[from] crate::control::config::HashKeyError),
    /// The configuration does not fit the core.
    #[error(transparent)]
    Build(#[from] crate::control::build::BuildError),
    /// The terminal does not do what `top` needs.
    #[error("the terminal: {0}")]
    Terminal(std::io::Error),
    /// Something could not be written.
    #[error("cannot write {what}: {source}")]
    Write {
        /// What was to be written.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Carries out a command.
///
/// # Errors
/// When it cannot be carried out at all; what a command finds wrong is an [`Outcome`].
pub fn run(arguments: Arguments) -> Result<Outcome, CommandError> {
    let Arguments { command, global } = arguments;
    match carry_out(command, &global) {
        Err(CommandError::Config(errors)) => {
            check::show_errors(&errors, &global);
            Ok(Outcome::Refused)
        }
        outcome => outcome,
    }
}

fn carry_out(command: Command, global: &Global) -> Result<Outcome, CommandError> {
    match command {
        Command::Check(args) => check::run(&args, global),
        Command::Probe(args) => probe::run(&args, global),
        Command::Doctor => doctor::run(global),
        Command::Run(args) => run::run(&args, global),
        Command::Reload(args) => reload::run(&args, global),
        Command::Firewall(command) => firewall::run(&command, global),
        Command::Drain(args) => drain::drain(&args, global),
        Command::Undrain(args) => drain::undrain(&args, global),
        Command::List(args) => live::list(&args, global),
        Command::Connections(args) => live::connections(&args, global),
        Command::Explain(args) => explain::run(&args, global),
        Command::Drops(args) => live::drops(&args, global),
        Command::Top(args) => top::run(&args, global),
        Command::Metrics(args) => metrics::run(&args, global),
        Command::Capture(args) => live::capture(&args, global),
        Command::Import(args) => import::run(&args, global),
        Command::Version => version::run(global),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
    }
}

/// Runs a conversation with a director. Plain tokio: a client needs no io_uring.
fn converse<T, F: Future<Output = Result<T, ClientError>>>(
    global: &Global,
    conversation: impl FnOnce(Client) -> F,
) -> Result<T, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CommandError::Runtime)?;
    let client = Client::new(&global.usable_socket());
    Ok(runtime.block_on(conversation(client))?)
}

impl Global {
    /// The socket: as asked, or else the one that this user may connect to.
    fn usable_socket(&self) -> PathBuf {
        let socket = self.socket_path();
        let denied = |path: &Path| {
            UnixStream::connect(path).is_err_and(|e| e.kind() == ErrorKind::PermissionDenied)
        };
        let other = read_only_socket(&socket);
        if self.socket.is_none() && denied(&socket) && !denied(&other) { other } else { socket }
    }

    /// The socket: as asked, else the configuration's, else the default one.
    fn socket_path(&self) -> PathBuf {
        let configured = || socket_of(&std::fs::read_to_string(&self.config).ok()?);
        self.socket.clone().or_else(configured).unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET))
    }
}

/// Reads and checks the configuration file.
fn load_config(path: &Path) -> Result<Config, CommandError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| CommandError::ReadConfig { path: path.to_owned(), source })?;
    crate::control::config::parse(&text, &path.display().to_string())
        .map_err(|errors| CommandError::Config(Box::new(errors)))
}
