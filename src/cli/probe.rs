//! `adit probe`: the way to a real server and back, tried from the director.

use super::output;
use super::{CommandError, Global, Outcome, converse};
use crate::control::admin::api::{Probed, Services};
use crate::control::admin::client::{Client, ClientError};
use crate::control::admin::query::Query;
use crate::control::health::exchange::LIVE_PORT;
use clap::Args;
use hyper::Method;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// Time between the starts of two tries.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// `adit probe`.
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// The real server's address.
    #[arg(value_name = "REAL")]
    pub real: IpAddr,
    /// By this service alone; by all that have the real server without it.
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Port of the VIP where `adit-realserver verify --live` listens.
    #[arg(long, value_name = "PORT", default_value_t = LIVE_PORT,
        value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// Try again for so long while a step fails, so that the other side may start later: 20s.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub limit: Option<Duration>,
}

pub(super) fn run(args: &ProbeArgs, global: &Global) -> Result<Outcome, CommandError> {
    let probed = converse(global, |client| async move { settled(&client, args).await })?;
    if probed.is_empty() {
        let real = args.real;
        output::error(&match &args.service {
            Some(name) => {
                format!("there is no service {name} with the real server {real}: adit list")
            }
            None => format!("no service has the real server {real}: adit list"),
        });
        return Ok(Outcome::Refused);
    }
    if global.json {
        output::json(&probed);
    } else {
        output::raw(shown(&probed).as_bytes());
    }
    let fine = probed.iter().all(|probed| probed.ok);
    Ok(if fine { Outcome::Fine } else { Outcome::Refused })
}

/// The last try of every service, when all have succeeded or the time is over.
async fn settled(client: &Client, args: &ProbeArgs) -> Result<Vec<Probed>, ClientError> {
    let until = Instant::now() + args.limit.unwrap_or_default();
    let Services { services } = client.ask(Method::GET, "/v1/services").await?;
    let asked = |name: &str| args.service.as_ref().is_none_or(|wanted| wanted == name);
    let names: Vec<String> = services
        .into_iter()
        .filter(|service| service.configured && asked(&service.name))
        .filter(|service| service.reals.iter().any(|real| real.address == args.real))
        .map(|service| service.name)
        .collect();
    loop {
        let began = Instant::now();
        let mut probed = Vec::with_capacity(names.len());
        for name in &names {
            probed.push(once(client, args, name).await?);
        }
        if probed.iter().all(|probed| probed.ok) || began + TRY_AGAIN >= until {
            return Ok(probed);
        }
        for step in probed.iter().flat_map(failed) {
            output::error(&format!("{step}; trying again"));
        }
        tokio::time::sleep(TRY_AGAIN.saturating_sub(began.elapsed())).await;
    }
}

async fn once(client: &Client, args: &ProbeArgs, service: &str) -> Result<Probed, ClientError> {
    let (real, port) = (args.real.to_string(), args.port.to_string());
    let query = Query::write(&[("service", service), ("real", &real), ("port", &port)]);
    client.ask(Method::POST, &format!("/v1/probe{query}")).await
}

/// What has failed, in a line each.
fn failed(probed: &Probed) -> impl Iterator<Item = String> {
    let failed = probed.steps.iter().filter(|step| step.outcome != "ok");
    failed
        .map(|step| format!("{} of {}: {}: {}", probed.real, probed.service, step.step, step.what))
}

fn shown(probed: &[Probed]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for Probed { service, vip, real, steps, .. } in probed {
        let _ = writeln!(text, "service {service}, VIP {vip}, real server {real}");
        for step in steps {
            let name = format!("{:<8}  {}", step.step, step.to);
            let _ = match step.took_us {
                Some(took) => writeln!(text, "  ok       {name}  {took} us"),
                None => writeln!(
                    text,
                    "  FAILED   {name}  {}: {}\n           look at: {}",
                    step.outcome, step.what, step.look_at
                ),
            };
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::admin::api::ProbeStep;

    #[test]
    fn each_step_is_shown_with_where_to_look() {
        let step = |step: &str, took_us, what: &str| ProbeStep {
            step: step.to_owned(),
            to: "192.0.2.1:7706".parse().unwrap(),
            outcome: if what.is_empty() { "ok" } else { "timeout" }.to_owned(),
            took_us,
            what: what.to_owned(),
            look_at: "the way back".to_owned(),
        };
        let steps = vec![step("live", Some(310), ""), step("download", None, "it stopped")];
        let (vip, real) = ([192, 0, 2, 1].into(), [10, 0, 0, 1].into());
        let probed = Probed { service: "db".to_owned(), vip, real, ok: false, steps };
        assert_eq!(failed(&probed).collect::<Vec<_>>(), ["10.0.0.1 of db: download: it stopped"]);
        assert_eq!(
            shown(&[probed]),
            "service db, VIP 192.0.2.1, real server 10.0.0.1\n  \
             ok       live      192.0.2.1:7706  310 us\n  \
             FAILED   download  192.0.2.1:7706  timeout: it stopped\n           \
             look at: the way back\n"
        );
    }
}
