//! `adit import`: a configuration from what another balancer was told.

use super::{CommandError, Global, Outcome, check, output};
use crate::control::import::{self, ImportError, Imported, Options, Report, Source};
use clap::{Args, Subcommand};
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// `adit import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// What to import from.
    #[command(subcommand)]
    pub from: From,
}

/// What can be imported.
#[derive(Debug, Subcommand)]
pub enum From {
    /// Import the rules that `ipvsadm -S -n` prints.
    ///
    /// For example: ipvsadm -S -n | adit import ipvsadm - --interface eth0 -o adit.toml
    Ipvsadm(InputArgs),
    /// Import the virtual servers of a keepalived.conf.
    ///
    /// VRRP, health checks and all else that Adit does not have is recognised and reported.
    Keepalived(KeepalivedArgs),
}

/// Input and output of every import.
#[derive(Debug, Args)]
pub struct InputArgs {
    /// The file to import; `-` reads standard input.
    pub file: PathBuf,
    /// Write the configuration here instead of to standard output.
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Overwrite the output file if there is one.
    #[arg(long, requires = "output")]
    pub force: bool,
    /// The interface that faces the clients; without it a comment keeps its place.
    #[arg(long, value_name = "NAME", value_parser = import::interface)]
    pub interface: Option<String>,
    /// Put the report into the configuration, as comments, instead of on standard error.
    #[arg(long)]
    pub report_in_comments: bool,
}

/// `adit import keepalived`.
#[derive(Debug, Args)]
pub struct KeepalivedArgs {
    /// Input and output.
    #[command(flatten)]
    pub input: InputArgs,
    /// Take the conditional lines (`@NAME …`) of this host, as `keepalived -i` does; without it
    /// they are reported.
    #[arg(long, value_name = "NAME")]
    pub config_id: Option<String>,
}

/// For programs: the configuration and the report in one.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    report: &'a Report,
    /// The configuration's text.
    config: &'a str,
    /// Where it was written to, if it was.
    written_to: Option<&'a Path>,
}

pub(super) fn run(args: &ImportArgs, global: &Global) -> Result<Outcome, CommandError> {
    let (source, input, config_id) = match &args.from {
        From::Ipvsadm(input) => (Source::Ipvsadm, input, None),
        From::Keepalived(args) => (Source::Keepalived, &args.input, args.config_id.clone()),
    };
    let (name, bytes) = read(&input.file)
        .map_err(|source| CommandError::ReadImport { path: input.file.clone(), source })?;
    let options = Options {
        interface: input.interface.clone(),
        config_id,
        report_in_comments: input.report_in_comments,
    };
    let imported = match import::import(source, &bytes, &name, &options) {
        Ok(imported) => imported,
        Err(ImportError::Syntax(errors)) => {
            check::show_errors(&errors, global);
            return Ok(Outcome::Refused);
        }
        Err(other) => return Err(other.into()),
    };
    if let Some(path) = &input.output {
        write(path, input.force, &imported.config).map_err(|source| {
            if source.kind() == io::ErrorKind::AlreadyExists {
                return CommandError::Exists(path.clone());
            }
            CommandError::Write { what: path.display().to_string(), source }
        })?;
    }
    show(&imported, input, global);
    Ok(Outcome::Fine)
}

/// The input and what it is called; of a file that is too long no more than shows it.
fn read(path: &Path) -> io::Result<(String, Vec<u8>)> {
    let most = import::MAX_INPUT_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        io::stdin().lock().take(most).read_to_end(&mut bytes)?;
        return Ok(("standard input".to_owned(), bytes));
    }
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    // Only its name: a comment with somebody's directories in it would differ from host to host.
    let name = path.file_name().unwrap_or(path.as_os_str());
    Ok((name.to_string_lossy().into_owned(), bytes))
}

/// Writes the file; one that is there only with `force`.
fn write(path: &Path, force: bool, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true);
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    options.open(path)?.write_all(text.as_bytes())
}

fn show(imported: &Imported, input: &InputArgs, global: &Global) {
    let Imported { config, report } = imported;
    if global.json {
        output::json(&Document { report, config, written_to: input.output.as_deref() });
        return;
    }
    if input.output.is_none() {
        output::raw(config.as_bytes());
    }
    if input.report_in_comments {
        output::error_block(&format!("{}\n", report.summary()));
    } else {
        output::error_block(&report.text());
    }
}
