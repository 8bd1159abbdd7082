//! `adit run`: the director in the foreground.

use super::{CommandError, Global, Outcome, load_config, logging, output};
use crate::control::{daemon, runtime};
use clap::Args;

/// `adit run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// What is logged: error, warn, info, debug, or a filter by module.
    #[arg(long, value_name = "LEVEL", env = "ADIT_LOG", default_value = "info")]
    pub log: String,
}

pub(super) fn run(args: &RunArgs, global: &Global) -> Result<Outcome, CommandError> {
    if let Err(refused) = logging::start(&args.log) {
        output::error(&refused);
        return Ok(Outcome::Refused);
    }
    let config = load_config(&global.config)?;
    // Reloads read it again, from wherever this was started.
    let file = std::path::absolute(&global.config)
        .map_err(|source| CommandError::ReadConfig { path: global.config.clone(), source })?;
    runtime::block_on(daemon::run(file, config))?.map_err(Box::new)?;
    Ok(Outcome::Fine)
}
