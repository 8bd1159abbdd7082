//! The command line: what can be asked, and how answers are shown.

mod check;
mod generate;
pub mod output;
mod version;

use crate::control::config::{Config, ConfigErrors, DEFAULT_CONFIG_PATH, DEFAULT_SOCKET};
use clap::{Args, Parser, Subcommand};
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
    /// Socket of the running director's admin interface.
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
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
    /// The configuration has errors.
    #[error("{path} is refused, see above", path = .0.file())]
    Config(Box<ConfigErrors>),
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
    match command {
        Command::Check(args) => check::run(&args, &global),
        Command::Version => version::run(&global),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
    }
}

/// Reads and checks the configuration file.
fn load_config(path: &Path) -> Result<Config, CommandError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| CommandError::ReadConfig { path: path.to_owned(), source })?;
    crate::control::config::parse(&text, &path.display().to_string())
        .map_err(|errors| CommandError::Config(Box::new(errors)))
}
