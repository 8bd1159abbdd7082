//! Completion scripts and manual pages, made from the same definitions as the commands.

use super::{Arguments, CommandError, Outcome, output};
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use std::io;
use std::path::{Path, PathBuf};

/// Commands of the system's administrator (man-pages(7)).
const MANUAL_SECTION: &str = "8";

/// `adit completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell to complete in.
    pub shell: Shell,
}

/// `adit man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Directory for adit.8, adit-check.8 and the rest; it must exist.
    pub directory: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<Outcome, CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Arguments::command(), "adit", &mut script);
    output::raw(&script);
    Ok(Outcome::Fine)
}

pub(super) fn man(args: &ManArgs) -> Result<Outcome, CommandError> {
    let mut command = Arguments::command().disable_help_subcommand(true);
    command.build();
    pages(command, &args.directory).map_err(|source| CommandError::Write {
        what: format!("manual pages to {}", args.directory.display()),
        source,
    })?;
    Ok(Outcome::Fine)
}

/// A page for the command and for each command below it. (`clap_mangen::generate_to` knows
/// section 1 only.)
fn pages(command: Command, directory: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        pages(below.clone(), directory)?;
    }
    Man::new(command)
        .section(MANUAL_SECTION)
        .source(concat!("adit ", env!("CARGO_PKG_VERSION")))
        .generate_to(directory)?;
    Ok(())
}
