//! Completion scripts and manual pages, made from the same definitions as the commands.

use super::{Arguments, CommandError, Outcome, output};
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::path::PathBuf;

/// `adit completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell to complete in.
    pub shell: Shell,
}

/// `adit man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Directory for adit.1, adit-check.1 and the rest; it must exist.
    pub directory: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<Outcome, CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Arguments::command(), "adit", &mut script);
    output::raw(&script);
    Ok(Outcome::Fine)
}

pub(super) fn man(args: &ManArgs) -> Result<Outcome, CommandError> {
    clap_mangen::generate_to(Arguments::command(), &args.directory).map_err(|source| {
        CommandError::Write {
            what: format!("manual pages to {}", args.directory.display()),
            source,
        }
    })?;
    Ok(Outcome::Fine)
}
