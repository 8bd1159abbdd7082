//! `adit list --health`: what checks know of real servers, and waiting until all are up.

use super::live::{ListArgs, only_asked, real_endpoint};
use super::output::{self, TextTable};
use super::{CommandError, Global, Outcome, converse};
use crate::control::admin::api::{HealthView, ServiceView, Services};
use crate::control::admin::client::{Client, ClientError};
use crate::dataplane::vip_prefix::VipPrefix;
use hyper::Method;
use serde::Serialize;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// How often the director is asked while it is waited for.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// A real server that is checked, as it is shown.
#[derive(Debug, Serialize)]
struct Row<'a> {
    service: &'a str,
    vip: VipPrefix,
    real: IpAddr,
    #[serde(flatten)]
    health: &'a HealthView,
}

pub(super) fn list(args: &ListArgs, global: &Global) -> Result<Outcome, CommandError> {
    let wait = args.wait;
    let name = args.service.clone();
    let mut services =
        converse(global, |client| async move { settled(&client, name.as_deref(), wait).await })?;
    if !only_asked(&mut services, args) {
        return Ok(Outcome::Refused);
    }
    if global.json {
        output::json(&rows(&services).collect::<Vec<_>>());
    } else {
        output::raw(table(&services).as_bytes());
    }
    if args.wait.is_none() {
        return Ok(Outcome::Fine);
    }
    if rows(&services).next().is_none() {
        output::error("no service that was asked for has a `check`: there is nothing to wait for");
        return Ok(Outcome::Refused);
    }
    let waiting: Vec<String> = rows(&services)
        .filter(|row| row.health.state != "up")
        .map(|row| format!("{} of {}: {}", row.real, row.service, row.health.reason))
        .collect();
    for line in &waiting {
        output::error(line);
    }
    Ok(if waiting.is_empty() { Outcome::Fine } else { Outcome::Refused })
}

/// The services, when all that is asked for is up or the time is over.
async fn settled(
    client: &Client,
    name: Option<&str>,
    wait: Option<Duration>,
) -> Result<Vec<ServiceView>, ClientError> {
    let until = Instant::now() + wait.unwrap_or_default();
    loop {
        let Services { services } = client.ask(Method::GET, "/v1/services").await?;
        let asked = |row: &Row<'_>| name.is_none_or(|name| row.service == name);
        let settled = rows(&services).filter(asked).all(|row| row.health.state == "up");
        if settled || Instant::now() >= until {
            return Ok(services);
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn rows(services: &[ServiceView]) -> impl Iterator<Item = Row<'_>> {
    services.iter().flat_map(|service| {
        service.reals.iter().filter_map(move |real| {
            let health = real.health.as_ref()?;
            Some(Row { service: &service.name, vip: service.vip, real: real.address, health })
        })
    })
}

fn table(services: &[ServiceView]) -> String {
    let head = ["Service", "Real server", "Check", "State", ">Since", ">Last", ">Latency", "Why"];
    let mut table = TextTable::new(&head);
    let seconds = |n: u64| humantime::format_duration(Duration::from_secs(n)).to_string();
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for service in services {
        for real in &service.reals {
            let Some(health) = &real.health else { continue };
            table.row([
                service.name.clone(),
                real_endpoint(service, real),
                health.check.clone(),
                health.state.clone(),
                seconds(health.since_seconds),
                or_dash(health.age_seconds.map(|age| format!("{} ago", seconds(age)))),
                or_dash(health.latency_us.map(|us| format!("{us} us"))),
                health.reason.clone(),
            ]);
        }
    }
    table.render()
}
