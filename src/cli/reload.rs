//! `adit reload`.

use super::{CommandError, Global, Outcome, converse, output};
use crate::control::admin::api::Reloaded;
use crate::control::admin::client::ClientError;
use crate::control::admin::query::Query;
use clap::Args;
use hyper::Method;

/// `adit reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// Show what would change and which connections it touches, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Cut connections to real servers that were taken out, instead of letting them end.
    #[arg(long)]
    pub now: bool,
}

pub(super) fn run(args: &ReloadArgs, global: &Global) -> Result<Outcome, CommandError> {
    let flag = |set: bool| if set { "true" } else { "false" };
    let query = Query::write(&[("dry_run", flag(args.dry_run)), ("now", flag(args.now))]);
    let target = format!("/v1/reload{query}");
    let asked =
        converse(
            global,
            |client| async move { client.ask::<Reloaded>(Method::POST, &target).await },
        );
    let reloaded = match asked {
        Ok(reloaded) => reloaded,
        Err(CommandError::Client(ClientError::Refused(body))) => {
            if global.json {
                output::json(&body);
            } else {
                output::error_block(&body.drawn);
                output::error(&format!("refused, the old configuration stays: {}", body.error));
            }
            return Ok(Outcome::Refused);
        }
        Err(other) => return Err(other),
    };
    if global.json {
        output::json(&reloaded);
        return Ok(Outcome::Fine);
    }
    for warning in &reloaded.warnings {
        output::line(&format!("warning: {}", warning.message));
    }
    for change in &reloaded.changes {
        let touched = match change.connections {
            0 => String::new(),
            1 => " (1 connection)".to_owned(),
            n => format!(" ({n} connections)"),
        };
        output::line(&format!("{}: {}{touched}", change.what, change.effect));
    }
    let count = reloaded.changes.len();
    let said = match (count, reloaded.applied) {
        (0, _) => "nothing changes".to_owned(),
        (n, true) => format!("{n} changes are in force"),
        (n, false) => format!("{n} changes would be made; nothing was changed"),
    };
    output::line(&format!("{said}; config {} -> {}", reloaded.old_hash, reloaded.new_hash));
    Ok(Outcome::Fine)
}
