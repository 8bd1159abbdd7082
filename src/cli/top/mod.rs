//! `adit top`: a running director, live in a terminal.
//!
//! [`model`] is what is known and how it is looked at, changed by readings and keys alone; [`view`]
//! draws it; [`screen`] owns the terminal, the clock and the socket.

mod keys;
mod model;
mod numbers;
mod screen;
mod table;
mod view;

use super::output;
use super::{CommandError, Global, Outcome, converse};
use crate::control::admin::api::{Drops, Services};
use crate::control::admin::client::{Client, ClientError};
use clap::Args;
use hyper::Method;
use model::{Model, Reading};
use std::time::Duration;
use tokio::time::Instant;

/// `adit top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Seconds between two readings.
    #[arg(short, long, value_name = "S", default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
    /// Print one frame as text, as tall as it must be, and end; rates are of one interval. With
    /// --json, its numbers.
    #[arg(long)]
    pub once: bool,
    /// Do without colours, as with NO_COLOR in the environment.
    #[arg(long)]
    pub no_color: bool,
}

pub(super) fn run(args: &TopArgs, global: &Global) -> Result<Outcome, CommandError> {
    let interval = Duration::from_secs(args.interval);
    if args.once {
        return once(interval, global);
    }
    if global.json {
        output::error(
            "a screen is not JSON; `adit top --once --json` prints one reading's numbers",
        );
        return Ok(Outcome::Refused);
    }
    if let Err(why) = screen::usable() {
        output::error(&format!("{why}; `adit top --once` prints one frame as text"));
        return Ok(Outcome::Refused);
    }
    let colours = !args.no_color && std::env::var_os("NO_COLOR").is_none();
    let socket = global.usable_socket();
    let model = Model::new(&socket.display().to_string(), interval, colours);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CommandError::Runtime)?;
    // A director that starts later may have a socket that this user may use, beside the other.
    let find = || global.usable_socket();
    runtime.block_on(screen::run(model, &socket, find)).map_err(CommandError::Terminal)?;
    Ok(Outcome::Fine)
}

/// One frame, or its numbers.
fn once(interval: Duration, global: &Global) -> Result<Outcome, CommandError> {
    let socket = global.usable_socket().display().to_string();
    let model = converse(global, |client| async move {
        let start = Instant::now();
        let mut model = Model::new(&socket, interval, false);
        model.update(read(&client, start).await?);
        tokio::time::sleep(interval).await;
        model.update(read(&client, start).await?);
        Ok(model)
    })?;
    match model.seen() {
        Some(seen) if global.json => output::json(seen),
        _ => output::raw(view::text(&model, screen::width()).as_bytes()),
    }
    Ok(Outcome::Fine)
}

/// Everything that a frame shows, at one moment.
///
/// # Errors
/// When the director does not answer.
async fn read(client: &Client, start: Instant) -> Result<Reading, ClientError> {
    let status = client.ask(Method::GET, "/v1/status").await?;
    let Services { services } = client.ask(Method::GET, "/v1/services").await?;
    let Drops { drops } = client.ask(Method::GET, "/v1/drops").await?;
    Ok(Reading { at: start.elapsed(), status, services, drops })
}
