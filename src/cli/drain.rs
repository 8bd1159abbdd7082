//! `adit drain` and `adit undrain`.

use super::{CommandError, Global, Outcome, converse, output};
use crate::control::admin::api::{DrainView, Drained, Hold, Services, SessionsView};
use crate::control::admin::client::{Client, ClientError};
use crate::control::admin::query::Query;
use clap::Args;
use hyper::Method;
use serde::Serialize;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// How often the director is asked while it is waited for.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How often it is said what remains, where that is another number.
const SAY_AGAIN: Duration = Duration::from_secs(1);

/// What a real server is drained of.
#[derive(Debug, Args)]
pub struct Target {
    /// The service, or `all`: all services that have the real server, those that come later too.
    #[arg(value_name = "SERVICE|all")]
    pub service: String,
    /// Address of the real server.
    #[arg(value_name = "REAL")]
    pub real: IpAddr,
}

/// `adit drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// What, and of what.
    #[command(flatten)]
    pub target: Target,
    /// Wait until no session remains, for so long at most: 10m. Exits with 1, and says how many are
    /// left, when some are; nothing is cut, and the real server stays drained.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub deadline: Option<Duration>,
    /// Wait until no session remains, however long that takes; with --deadline, until then.
    #[arg(long)]
    pub wait: bool,
    /// Why: shown wherever the drain is.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Drain also where a service then has no real server left for new connections.
    #[arg(long)]
    pub force: bool,
}

/// `adit undrain`.
#[derive(Debug, Args)]
pub struct UndrainArgs {
    /// What, and of what; as it was drained.
    #[command(flatten)]
    pub target: Target,
}

/// What the command prints as JSON: the director's answer, and what was waited for.
#[derive(Debug, Serialize)]
struct Answer {
    #[serde(flatten)]
    drained: Drained,
    /// Sessions that remained at the end; absent where nobody waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining: Option<u64>,
}

/// How waiting ended.
enum Waited {
    /// No session remains.
    Ended,
    /// The deadline came; what remained, if that is known.
    Deadline(Option<SessionsView>),
    /// The drain is not there any more.
    TakenBack,
}

impl Target {
    /// The query that names it, with more parameters.
    fn query<'a>(&'a self, real: &'a str, more: &[(&'a str, &'a str)]) -> String {
        let of = match self.service.as_str() {
            "all" => ("all", "true"),
            name => ("service", name),
        };
        let mut parameters = vec![of, ("real", real)];
        parameters.extend(more);
        Query::write(&parameters)
    }
}

pub(super) fn drain(args: &DrainArgs, global: &Global) -> Result<Outcome, CommandError> {
    let real = args.target.real.to_string();
    let mut more = vec![("force", if args.force { "true" } else { "false" })];
    more.extend(args.reason.as_deref().map(|reason| ("reason", reason)));
    let target = format!("/v1/drain{}", args.target.query(&real, &more));
    let ask = |client: Client| async move { client.ask::<Drained>(Method::POST, &target).await };
    let drained = converse(global, ask)?;
    if !global.json {
        let first = if drained.changed { "drained" } else { "is drained already" };
        say(&drained, first);
    }
    let waits = args.wait || args.deadline.is_some();
    let mut remaining = None;
    let mut outcome = Outcome::Fine;
    if waits {
        let until = args.deadline.and_then(|time| Instant::now().checked_add(time));
        let answer = drained.clone();
        let waited =
            converse(
                global,
                |client| async move { no_session_remains(&client, &answer, until).await },
            )?;
        (outcome, remaining) = ended(&args.target, waited, global.json);
    }
    if global.json {
        output::json(&Answer { drained, remaining });
    }
    Ok(outcome)
}

/// Says how waiting ended; the outcome, and how many sessions remained.
fn ended(target: &Target, waited: Waited, json: bool) -> (Outcome, Option<u64>) {
    let real = target.real;
    match waited {
        Waited::Ended => {
            if !json {
                output::line(&format!("{real}: no session remains"));
            }
            (Outcome::Fine, Some(0))
        }
        Waited::Deadline(Some(sessions)) => {
            output::error(&format!(
                "{real}: the deadline has come and {sessions}; nothing was cut, and it stays drained"
            ));
            (Outcome::Refused, Some(sessions.total()))
        }
        Waited::Deadline(None) => {
            output::error(&format!(
                "{real}: the deadline came before the director had counted what remains; it stays \
                 drained"
            ));
            (Outcome::Refused, None)
        }
        Waited::TakenBack => {
            output::error(&format!(
                "{real} is not drained any more: somebody has taken it back, or it has left the \
                 configuration"
            ));
            (Outcome::Refused, None)
        }
    }
}

pub(super) fn undrain(args: &UndrainArgs, global: &Global) -> Result<Outcome, CommandError> {
    let real = args.target.real.to_string();
    let target = format!("/v1/undrain{}", args.target.query(&real, &[]));
    let ask = |client: Client| async move { client.ask::<Drained>(Method::POST, &target).await };
    let drained = converse(global, ask)?;
    if global.json {
        output::json(&Answer { drained, remaining: None });
        return Ok(Outcome::Fine);
    }
    say(&drained, if drained.changed { "takes new connections again" } else { "was not drained" });
    Ok(Outcome::Fine)
}

/// What has become of a real server, and what keeps it from new connections now.
fn say(drained: &Drained, what: &str) {
    let Drained { real, service, services, drains, warnings, .. } = drained;
    let of = match service {
        Some(service) => service.clone(),
        None => format!("all services ({})", services.join(", ")),
    };
    output::line(&format!("{real} of {of}: {what}"));
    for Hold { service, owner, reason, since } in drains {
        let of = service.as_deref().unwrap_or("all services");
        let why = reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        output::line(&format!("  drained in {of} by {owner} since {since}{why}"));
    }
    for warning in warnings {
        output::line(&format!("warning: {warning}"));
    }
}

/// Waits until no session of a drained real server remains. A director that does not answer
/// meanwhile, since it is restarted, is asked again.
async fn no_session_remains(
    client: &Client,
    drained: &Drained,
    until: Option<Instant>,
) -> Result<Waited, ClientError> {
    let mut known: Option<SessionsView> = None;
    let mut said: Option<(Instant, String)> = None;
    loop {
        let now = Instant::now();
        let text = match client.ask::<Services>(Method::GET, "/v1/services").await {
            Ok(services) => match left(&services, drained) {
                Left::TakenBack => return Ok(Waited::TakenBack),
                Left::Counting => "the director counts what remains".to_owned(),
                Left::Sessions(sessions) if sessions.total() == 0 => return Ok(Waited::Ended),
                Left::Sessions(sessions) => {
                    known = Some(sessions);
                    sessions.to_string()
                }
            },
            Err(refused @ ClientError::Refused(_)) => return Err(refused),
            Err(silent) => format!("{silent}; it is asked again"),
        };
        if until.is_some_and(|until| now >= until) {
            return Ok(Waited::Deadline(known));
        }
        let fresh = said
            .as_ref()
            .is_none_or(|(at, last)| *last != text && now.duration_since(*at) >= SAY_AGAIN);
        if fresh {
            output::progress(&format!("{}: {text}", drained.real));
            said = Some((now, text));
        }
        let next = now + ASK_AGAIN;
        tokio::time::sleep_until(until.map_or(next, |until| until.min(next))).await;
    }
}

/// What is left of a real server that was drained.
enum Left {
    /// It is not drained any more.
    TakenBack,
    /// That is not known yet.
    Counting,
    /// So much.
    Sessions(SessionsView),
}

/// What is left of the services that were asked for, those by an earlier tunnel included.
fn left(services: &Services, drained: &Drained) -> Left {
    let asked = services
        .services
        .iter()
        .filter(|service| drained.service.as_ref().is_none_or(|name| service.name == *name));
    let drains: Vec<&DrainView> = asked
        .flat_map(|service| &service.reals)
        .filter(|real| real.address == drained.real)
        .filter_map(|real| real.drain.as_ref())
        .collect();
    if drains.is_empty() {
        return Left::TakenBack;
    }
    let sum = |sum: SessionsView, drain: &&DrainView| Some(sum.plus(drain.sessions?));
    match drains.iter().try_fold(SessionsView::default(), sum) {
        Some(sessions) => Left::Sessions(sessions),
        None => Left::Counting,
    }
}
