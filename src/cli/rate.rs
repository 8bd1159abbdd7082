//! `adit list --rate`: what happens per second, from two readings of the counters.

use super::live::{ListArgs, only_asked, real_endpoint, service_line};
use super::output::{self, TextTable};
use super::{CommandError, Global, Outcome, converse};
use crate::control::admin::api::{ServiceView, Services};
use crate::control::admin::client::{Client, ClientError};
use crate::control::config::VipPrefix;
use crate::dataplane::counters::DestinationReading;
use hyper::Method;
use serde::Serialize;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// The counters at one moment.
struct Reading {
    at: Instant,
    services: Vec<ServiceView>,
}

/// What happened per second between two readings.
#[derive(Debug, Serialize)]
pub(super) struct Rates {
    /// Seconds between the readings.
    pub(super) seconds: f64,
    /// As in the later reading.
    pub(super) services: Vec<ServiceRate>,
}

#[derive(Debug, Serialize)]
pub(super) struct ServiceRate {
    name: String,
    vip: VipPrefix,
    ports: String,
    protocol: String,
    /// Of all its real servers.
    #[serde(flatten)]
    pub(super) rate: Rate,
    /// As in the later reading.
    pub(super) reals: Vec<RealRate>,
}

#[derive(Debug, Serialize)]
pub(super) struct RealRate {
    address: IpAddr,
    #[serde(flatten)]
    pub(super) rate: Rate,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Rate {
    /// New connections.
    pub(super) connections_per_second: f64,
    /// Packets from clients.
    pub(super) packets_per_second: f64,
    /// Bytes of these, without the outer header.
    pub(super) bytes_per_second: f64,
}

/// What a counter counted per second.
pub(super) fn per_second(before: u64, after: u64, seconds: f64) -> f64 {
    // Smaller than before: what counts was taken out and came back, so that it counts from 0.
    let more = after.checked_sub(before).unwrap_or(after);
    more as f64 / seconds
}

impl Rate {
    fn between(before: &DestinationReading, after: &DestinationReading, seconds: f64) -> Self {
        Rate {
            connections_per_second: per_second(before.connections, after.connections, seconds),
            packets_per_second: per_second(before.packets, after.packets, seconds),
            bytes_per_second: per_second(before.bytes, after.bytes, seconds),
        }
    }

    fn and(self, other: Self) -> Self {
        Rate {
            connections_per_second: self.connections_per_second + other.connections_per_second,
            packets_per_second: self.packets_per_second + other.packets_per_second,
            bytes_per_second: self.bytes_per_second + other.bytes_per_second,
        }
    }

    fn cells(self) -> [String; 3] {
        [self.connections_per_second, self.packets_per_second, self.bytes_per_second]
            .map(|rate| format!("{rate:.1}"))
    }
}

impl Rates {
    pub(super) fn between(
        before: &[ServiceView],
        after: &[ServiceView],
        elapsed: Duration,
    ) -> Self {
        let seconds = elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        let service = |now: &ServiceView| {
            let then = before.iter().find(|s| s.name == now.name && s.vip == now.vip);
            let reals: Vec<RealRate> = (now.reals.iter())
                .map(|real| {
                    let then =
                        then.and_then(|s| s.reals.iter().find(|r| r.address == real.address));
                    let then = then.map_or(DestinationReading::default(), |r| r.counters);
                    let rate = Rate::between(&then, &real.counters, seconds);
                    RealRate { address: real.address, rate }
                })
                .collect();
            ServiceRate {
                name: now.name.clone(),
                vip: now.vip,
                ports: now.ports.clone(),
                protocol: now.protocol.clone(),
                rate: reals.iter().fold(Rate::default(), |sum, real| sum.and(real.rate)),
                reals,
            }
        };
        Rates { seconds, services: after.iter().map(service).collect() }
    }

    /// As ipvsadm shows them, without the columns of what real servers answer: it does not come by
    /// here.
    fn table(&self, services: &[ServiceView]) -> String {
        let head = ["Prot LocalAddress:Port Scheduler Flags", ">CPS", ">InPPS", ">InBPS"];
        let mut table = TextTable::new(&head);
        table.row(["  -> RemoteAddress:Port"]);
        for (service, rates) in services.iter().zip(&self.services) {
            let [connections, packets, bytes] = rates.rate.cells();
            table.row([service_line(service), connections, packets, bytes]);
            for (real, rates) in service.reals.iter().zip(&rates.reals) {
                let [connections, packets, bytes] = rates.rate.cells();
                let address = format!("  -> {}", real_endpoint(service, real));
                table.row([address, connections, packets, bytes]);
            }
        }
        table.render()
    }
}

async fn read(client: &Client, service: Option<&String>) -> Result<Reading, ClientError> {
    let Services { mut services } = client.ask(Method::GET, "/v1/services").await?;
    let at = Instant::now();
    services.retain(|s| service.is_none_or(|name| s.name == *name));
    Ok(Reading { at, services })
}

pub(super) fn list(args: &ListArgs, global: &Global) -> Result<Outcome, CommandError> {
    let interval = Duration::from_secs(args.interval);
    let service = args.service.as_ref();
    let json = global.json;
    let watch = args.watch;
    converse(global, |client| async move {
        let mut before = read(&client, service).await?;
        if !only_asked(&mut before.services, args) {
            return Ok(Outcome::Refused);
        }
        loop {
            tokio::time::sleep(interval).await;
            let after = read(&client, service).await?;
            let rates = Rates::between(&before.services, &after.services, after.at - before.at);
            if json {
                output::json(&rates);
            } else {
                output::raw(rates.table(&after.services).as_bytes());
            }
            if !watch {
                return Ok(Outcome::Fine);
            }
            if !json {
                output::line("");
            }
            before = after;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::admin::api::{RealView, sample};

    fn service(counts: &[(&str, u64)]) -> ServiceView {
        let real = |(address, count): &(&str, u64)| RealView {
            counters: DestinationReading {
                connections: *count,
                packets: 10 * count,
                bytes: 1000 * count,
                ..DestinationReading::default()
            },
            ..sample::real(address)
        };
        let reals = counts.iter().map(real).collect();
        ServiceView { scheduler: "rr".to_owned(), ..sample::service("db", "192.0.2.1", reals) }
    }

    #[test]
    fn rates_are_differences_by_time() {
        // One goes on, one came back with new counters, one is new, one is gone.
        let before = [service(&[("10.0.0.1", 100), ("10.0.0.2", 50), ("10.0.0.9", 7)])];
        let after = [service(&[("10.0.0.1", 110), ("10.0.0.2", 4), ("10.0.0.3", 6)])];
        let rates = Rates::between(&before, &after, Duration::from_secs(2));
        let found: Vec<f64> =
            rates.services[0].reals.iter().map(|r| r.rate.connections_per_second).collect();
        assert_eq!(found, [5.0, 2.0, 3.0]);
        let all = Rate {
            connections_per_second: 10.0,
            packets_per_second: 100.0,
            bytes_per_second: 10_000.0,
        };
        assert_eq!(rates.services[0].rate, all);
        assert_eq!(
            rates.table(&after),
            "Prot LocalAddress:Port Scheduler Flags   CPS  InPPS    InBPS\n\
             \x20 -> RemoteAddress:Port\n\
             TCP  192.0.2.1:5432 rr  [db]            10.0  100.0  10000.0\n\
             \x20 -> 10.0.0.1:5432                       5.0   50.0   5000.0\n\
             \x20 -> 10.0.0.2:5432                       2.0   20.0   2000.0\n\
             \x20 -> 10.0.0.3:5432                       3.0   30.0   3000.0\n"
        );
    }
}
