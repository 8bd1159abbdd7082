//! `adit explain`: where a client's packets go, and why.

use super::{CommandError, Global, Outcome, converse, load_config, output};
use crate::control::admin::api::{DrainedReal, Explained, Unhealthy};
use crate::control::admin::query::Query;
use crate::control::config::LoadedKey;
use crate::control::explain::{Live, Question, explain, offline_snapshot, protocol_name};
use crate::dataplane::service::Protocol;
use clap::Args;
use hyper::Method;
use serde_json::Value;
use std::net::SocketAddr;
use std::str::FromStr;

/// `adit explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The client, such as 203.0.113.7:40000 or [2001:db8::7]:40000.
    #[arg(value_name = "CIP:PORT")]
    pub client: SocketAddr,
    /// The VIP, such as 198.51.100.10:5432 or 198.51.100.10:53/udp.
    #[arg(value_name = "VIP:PORT[/tcp|udp]")]
    pub vip: Target,
    /// Look at the configuration file alone; no director is needed.
    #[arg(long)]
    pub offline: bool,
}

/// A VIP with its port and protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    address: SocketAddr,
    protocol: Protocol,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            other => return Err(format!("`{other}` is not tcp or udp")),
        };
        let address = address
            .parse()
            .map_err(|_| format!("`{address}` is not an address and a port (192.0.2.1:5432)"))?;
        Ok(Target { address, protocol })
    }
}

pub(super) fn run(args: &ExplainArgs, global: &Global) -> Result<Outcome, CommandError> {
    let explained = if args.offline { offline(args, global)? } else { live(args, global)? };
    if global.json {
        output::json(&explained);
    } else {
        show(&explained);
    }
    Ok(Outcome::Fine)
}

fn offline(args: &ExplainArgs, global: &Global) -> Result<Explained, CommandError> {
    let mut config = load_config(&global.config)?;
    let key = LoadedKey::load(config.director.hash_key_file.as_deref())?.key;
    let Target { address: vip, protocol } = args.vip;
    // Tables of other VIPs have no say, and would take their time.
    config.services.retain(|service| service.vip.contains(vip.ip()));
    let snapshot = offline_snapshot(&config, key)?;
    let question = Question { client: args.client, vip, protocol };
    let mut explained = explain(&snapshot.services, key, &question, Live::NOTHING);
    explained.add_tunnel(&config);
    Ok(explained)
}

fn live(args: &ExplainArgs, global: &Global) -> Result<Explained, CommandError> {
    let query = Query::write(&[
        ("client", &args.client.to_string()),
        ("vip", &args.vip.address.to_string()),
        ("protocol", protocol_name(args.vip.protocol)),
    ]);
    let target = format!("/v1/explain{query}");
    converse(global, |client| async move { client.ask(Method::GET, &target).await })
}

fn show(explained: &Explained) {
    output::line(&format!("{} -> {}/{}", explained.client, explained.vip, explained.protocol));
    output::line(&explained.answer);
    if let Some(tunnel) = &explained.tunnel {
        output::line(&format!("tunnel       {tunnel}"));
    }
    if let Some(connection) = &explained.connection {
        output::line(&format!(
            "connection   {}, idle {} s, forgotten in {} s",
            connection.state, connection.idle_seconds, connection.expires_seconds
        ));
    }
    for Unhealthy { real, reason } in &explained.unhealthy {
        output::line(&format!("{real}  {reason}"));
    }
    for DrainedReal { real, drain } in &explained.drained {
        output::line(&format!("{real}  {drain}"));
    }
    let (Some(key_of), Some(choice)) = (&explained.key_of, &explained.choice) else { return };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    output::line(&format!("scheduler    {}", text(&choice["scheduler"])));
    if choice["key"].is_string() {
        output::line(&format!("key          {}, made of {key_of}", text(&choice["key"])));
    }
    if choice["table_size"].is_number() {
        output::line(&format!("table        {} slots", choice["table_size"]));
    }
    for probe in choice["probes"].as_array().into_iter().flatten() {
        let slot = if probe["slot"].is_number() {
            format!("slot {}", probe["slot"])
        } else if probe["load"].is_object() {
            let load = &probe["load"];
            format!("{} active, {} inactive", load["active"], load["inactive"])
        } else if choice["key"].is_string() {
            "by hash".to_owned()
        } else {
            "in turn".to_owned()
        };
        output::line(&format!(
            "candidate {}  {slot}: {} {}",
            probe["probe"],
            text(&probe["candidate"]["address"]),
            text(&probe["outcome"])
        ));
    }
    if choice["rendezvous"] == Value::Bool(true) {
        output::line("no candidate took it: chosen by weighted rendezvous");
    }
    if choice["rederived"].is_object() {
        output::line(&format!(
            "without an entry, packets in mid-flow go to {}",
            text(&choice["rederived"]["address"])
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let udp = "[2001:db8::1]:53/udp".parse::<Target>().unwrap();
        assert_eq!((udp.address.port(), udp.protocol), (53, Protocol::Udp));
        let tcp = "192.0.2.1:5432".parse::<Target>().unwrap();
        assert_eq!(tcp.protocol, Protocol::Tcp);
        for wrong in ["192.0.2.1", "192.0.2.1:1/sctp", "2001:db8::1:53", ":5432"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
