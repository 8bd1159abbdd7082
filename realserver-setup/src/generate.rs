//! Completion scripts and manual pages, made from the same definitions as the commands.

use std::io::{self, Write as _};
use std::path::Path;

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::Cli;

/// Commands of the system's administrator (man-pages(7)).
const MANUAL_SECTION: &str = "8";

/// Prints the completion script.
pub(crate) fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "adit-realserver", &mut script);
    io::stdout().write_all(&script).context("print the completion script")
}

/// Writes the manual pages.
pub(crate) fn man(directory: &Path) -> anyhow::Result<()> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    pages(command, directory)
        .with_context(|| format!("write manual pages to {}", directory.display()))
}

/// A page for the command and for each command below it.
fn pages(command: Command, directory: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        pages(below.clone(), directory)?;
    }
    Man::new(command)
        .section(MANUAL_SECTION)
        .source(concat!("adit-realserver ", env!("CARGO_PKG_VERSION")))
        .generate_to(directory)?;
    Ok(())
}
