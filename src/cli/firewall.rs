//! `adit firewall`.

use super::{CommandError, Global, Outcome, check, load_config, output};
use crate::control::host::accepts::{self, AcceptsError, Change};
use crate::control::host::missing_accepts;
use crate::control::runtime;
use clap::{Args, Subcommand};
use serde::Serialize;

/// What to do with the accept rules.
#[derive(Debug, Subcommand)]
pub enum FirewallCommand {
    /// Add the accept rules that `adit check` finds missing.
    ///
    /// Each gets a comment, by which `close` knows it. Where nothing is missing, nothing is done. What
    /// loads the firewall's own rules anew takes ours away with the rest: say it again after that.
    Open(FirewallArgs),
    /// Take away the rules that `open` added.
    Close(FirewallArgs),
}

/// Options of both.
#[derive(Debug, Args)]
pub struct FirewallArgs {
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// What the command prints as JSON.
#[derive(Serialize)]
struct Answer {
    changed: bool,
    steps: Vec<Change>,
}

pub(super) fn run(command: &FirewallCommand, global: &Global) -> Result<Outcome, CommandError> {
    let (steps, args) = match command {
        FirewallCommand::Open(args) => {
            let config = load_config(&global.config)?;
            let facts = match check::host_facts(&config) {
                Ok(facts) => facts,
                Err(finding) => return refused(&finding.message),
            };
            if let Some(reason) = &facts.chains_unseen {
                return refused(&format!("the firewall's rules cannot be seen: {reason}"));
            }
            (accepts::additions(&missing_accepts(&config, &facts)), args)
        }
        FirewallCommand::Close(args) => match plain(accepts::removals()) {
            Ok(steps) => (steps, args),
            Err(reason) => return refused(&reason),
        },
    };
    if !args.dry_run
        && let Err(reason) = plain(accepts::carry_out(&steps))
    {
        return refused(&reason);
    }
    if global.json {
        output::json(&Answer { changed: !steps.is_empty(), steps });
    } else if steps.is_empty() {
        output::line("nothing to do");
    } else {
        steps.iter().for_each(|step| output::line(&step.text));
    }
    Ok(Outcome::Fine)
}

/// Runs what waits for nft, and puts what went wrong into words.
fn plain<T>(work: impl Future<Output = Result<T, AcceptsError>>) -> Result<T, String> {
    match runtime::block_on_plain(work) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn refused(reason: &str) -> Result<Outcome, CommandError> {
    output::error(reason);
    Ok(Outcome::Refused)
}
