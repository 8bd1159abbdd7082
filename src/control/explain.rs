//! Where a packet would go and why, from the same tables the worker uses.

use super::admin::api::Explained;
use super::build::{CookieRoot, Surroundings, World};
use super::config::Config;
use super::netlink::egress::Survey;
use crate::dataplane::counters::DestinationCounters;
use crate::dataplane::hash::{FlowTuple, HashKey};
use crate::dataplane::packet;
use crate::dataplane::region::{Directory, Entry, REAL_CAPACITY, VIP_CAPACITY};
use crate::dataplane::scheduler::KeyedBy;
use crate::dataplane::service::{Protocol, ServiceTable};
use crate::dataplane::snapshot::Snapshot;
use crate::dataplane::time::Time;
use std::net::{IpAddr, SocketAddr};

/// What is asked: a client's packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// The client, with its port.
    pub client: SocketAddr,
    /// The VIP, with its port.
    pub vip: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
}

impl Question {
    /// The flow it is about.
    #[must_use]
    pub fn tuple(&self) -> FlowTuple {
        FlowTuple {
            client: self.client.ip(),
            client_port: self.client.port(),
            vip: self.vip.ip(),
            vip_port: self.vip.port(),
            protocol: self.protocol.number(),
        }
    }
}

/// A snapshot of a configuration without a host: what `explain` and tests need.
///
/// # Errors
/// When the configuration does not fit the core's tables.
pub fn offline_snapshot(
    config: &Config,
    key: HashKey,
) -> Result<Snapshot, super::build::BuildError> {
    let entries = |count: u32| (0..count).map(|_| Entry::default()).collect::<Vec<_>>();
    let reals = Directory::new(entries(REAL_CAPACITY));
    let vips = Directory::new(entries(VIP_CAPACITY));
    let counters =
        crate::dataplane::counters::AllCounters::new(super::destinations::DESTINATION_CAPACITY, 1);
    let mut world = World::new(reals, vips, key);
    world.enter(config, &counters)?;
    let survey = Survey::default();
    let around = Surroundings {
        survey: &survey,
        tap_mac: [0; 6],
        client_mac: None,
        cookies: CookieRoot { secret: [0; 16], epoch: 0 },
        counters: counters.destinations(),
        // Without a director nothing is checked.
        health: &super::health::Board::default(),
        workers: super::cores::workers(config),
        drains: &super::drains::Drains::default(),
    };
    world.snapshot(config, key, &around, |_| None, None)
}

/// What a running director knows that its configuration does not say.
#[derive(Debug, Clone, Copy)]
pub struct Live<'a> {
    /// Gauges by destination.
    pub counters: &'a [DestinationCounters],
    /// Now.
    pub now: Time,
}

impl Live<'_> {
    /// Nothing: no director runs, nobody has a connection.
    pub const NOTHING: Live<'static> = Live { counters: &[], now: Time::ZERO };
}

impl Explained {
    /// Adds how packets to the real server are carried, which `config` says.
    pub fn add_tunnel(&mut self, config: &Config) {
        let service = config.services.iter().find(|s| Some(&s.name) == self.service.as_ref());
        let reals = service.map(|s| s.reals.as_slice()).unwrap_or_default();
        let real = reals.iter().find(|real| Some(real.address) == self.real);
        self.tunnel = real.map(|real| real.tunnel.to_string());
    }
}

/// How a new flow would be placed. Flows and persistence that exist already are the live
/// director's to add.
#[must_use]
pub fn explain(
    services: &ServiceTable,
    key: HashKey,
    question: &Question,
    live: Live<'_>,
) -> Explained {
    let tuple = question.tuple();
    let mut explained = Explained {
        client: question.client.to_string(),
        vip: question.vip.to_string(),
        protocol: protocol_name(question.protocol).to_owned(),
        service: None,
        key_of: None,
        choice: None,
        real: None,
        tunnel: None,
        connection: None,
        persisted: None,
        unhealthy: Vec::new(),
        drained: Vec::new(),
        answer: String::new(),
    };
    let Some(vip) = services.vip(&packet::address(tuple.vip)) else {
        explained.answer = format!("{} is no VIP here: dropped as not_vip", tuple.vip);
        return explained;
    };
    let Some(service) = services.find(vip, tuple.protocol, tuple.vip_port) else {
        explained.answer = format!(
            "no service takes {} port {} of {}: dropped as no_service",
            explained.protocol, tuple.vip_port, tuple.vip
        );
        return explained;
    };
    let placement = service.placement_key(&key, &tuple);
    let candidates = service.candidates(live.counters, live.now);
    let choice = service.scheduler.explain(&placement, &candidates);
    explained.service = Some(service.name.to_string());
    explained.key_of = Some(match &service.persistence {
        Some(policy) => {
            let length = match tuple.client {
                IpAddr::V4(_) => policy.ipv4_prefix,
                IpAddr::V6(_) => policy.ipv6_prefix,
            };
            format!("the client's prefix of {length} bits and the persistence group")
        }
        None => match service.scheduler.keyed_by() {
            KeyedBy::Flow => "client, port, VIP, port and protocol",
            KeyedBy::Client => "the client's address",
            KeyedBy::ClientAndPort => "the client's address and port",
            KeyedBy::Vip => "the VIP",
        }
        .to_owned(),
    });
    explained.real = choice.chosen.map(|member| member.address);
    let what = if service.one_packet { "datagram" } else { "new flow" };
    explained.answer = match choice.chosen {
        Some(member) if service.scheduler.is_hash() => {
            format!("service {}: a {what} goes to {}", service.name, member.address)
        }
        Some(member) => {
            let (name, scheduler) = (&service.name, service.scheduler.name());
            // The last one looked at is the one that was taken.
            let how = match choice.probes.last().and_then(|probe| probe.load) {
                Some(_) => "looks at weights and connections",
                None => "takes turns",
            };
            format!(
                "service {name}: the next {what} goes to {}, whichever it is ({scheduler} {how})",
                member.address
            )
        }
        None if candidates.eligible().next().is_none() => format!(
            "service {}: no real server takes new flows: dropped as no_real_server",
            service.name
        ),
        None if service.scheduler.is_hash() => format!(
            "service {}: the client's real server takes no {what}, and without a fallback no other \
             is asked: dropped as no_real_server",
            service.name
        ),
        None => format!(
            "service {}: every real server has more connections than its weight: dropped as \
             no_real_server",
            service.name
        ),
    };
    // The explanation is plain data with string keys.
    explained.choice = serde_json::to_value(&choice).ok();
    explained
}

/// The name of a protocol in the configuration.
#[must_use]
pub fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse;

    const TEXT: &str = "[director]\ninterface = \"eth0\"\n\
        [[service]]\nname = \"db\"\nvip = \"192.0.2.1\"\nport = 5432\n\
        [[service.real]]\naddress = \"10.0.0.1\"\n[[service.real]]\naddress = \"10.0.0.2\"\n\
        [[service.real]]\naddress = \"10.0.0.3\"\nweight = 0\n\
        [[service]]\nname = \"kept\"\nvip = \"192.0.2.1\"\nport = 80\n\
        persistence = { ipv4_prefix = 24 }\n\
        [[service.real]]\naddress = \"10.0.0.1\"\n[[service.real]]\naddress = \"10.0.0.2\"\n";

    fn ask(client: &str, vip: &str) -> Explained {
        let config = parse(TEXT, "t").unwrap();
        let snapshot = offline_snapshot(&config, HashKey::DEFAULT).unwrap();
        let question = Question {
            client: client.parse().unwrap(),
            vip: vip.parse().unwrap(),
            protocol: Protocol::Tcp,
        };
        explain(&snapshot.services, HashKey::DEFAULT, &question, Live::NOTHING)
    }

    #[test]
    fn every_way_to_an_answer() {
        assert!(ask("198.51.100.1:1", "192.0.2.9:1").answer.contains("not_vip"));
        assert!(ask("198.51.100.1:1", "192.0.2.1:1").answer.contains("no_service"));
        let mut seen = std::collections::BTreeSet::new();
        for port in 1..100 {
            let explained = ask(&format!("198.51.100.1:{port}"), "192.0.2.1:5432");
            assert_eq!(explained.service.as_deref(), Some("db"));
            seen.insert(explained.real.unwrap().to_string());
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["10.0.0.1", "10.0.0.2"]);
    }

    /// The answer for a service of `scheduler` whose three real servers have these active
    /// connections.
    fn answer(scheduler: &str, active: [u64; 3]) -> Explained {
        let text = format!(
            "[director]\ninterface = \"eth0\"\n[[service]]\nname = \"db\"\nvip = \"192.0.2.1\"\n\
             port = 5432\nscheduler = {scheduler}\n\
             [[service.real]]\naddress = \"10.0.0.1\"\nweight = 2\n\
             [[service.real]]\naddress = \"10.0.0.2\"\nweight = 1\n\
             [[service.real]]\naddress = \"10.0.0.3\"\nweight = 0\n"
        );
        let snapshot = offline_snapshot(&parse(&text, "t").unwrap(), HashKey::DEFAULT).unwrap();
        let counters: Vec<DestinationCounters> = active
            .map(|active| {
                let counters = DestinationCounters::default();
                counters.active.add(active);
                counters
            })
            .into();
        let live = Live { counters: &counters, now: Time::ZERO };
        let question = Question {
            client: "198.51.100.1:7".parse().unwrap(),
            vip: "192.0.2.1:5432".parse().unwrap(),
            protocol: Protocol::Tcp,
        };
        explain(&snapshot.services, HashKey::DEFAULT, &question, live)
    }

    #[test]
    fn answers_say_what_the_scheduler_looks_at() {
        let busy = answer("\"wlc\"", [5, 1, 0]);
        assert!(busy.answer.contains("10.0.0.2, whichever it is (wlc looks at weights and conn"));
        assert_eq!(busy.choice.unwrap()["probes"][0]["load"]["active"], 5);
        let overflowing = answer("\"ovf\"", [3, 2, 0]);
        assert_eq!(overflowing.real, None);
        assert!(overflowing.answer.contains("more connections than its weight"));
        assert!(answer("\"wrr\"", [0; 3]).answer.contains("(wrr takes turns)"));
        let key_of = |scheduler: &str| answer(scheduler, [0; 3]).key_of.unwrap();
        assert_eq!(key_of("\"mh\""), "the client's address");
        assert_eq!(
            key_of("\"sh\"\nscheduler_flags = [\"sh-port\"]"),
            "the client's address and port"
        );
        assert_eq!(key_of("\"dh\""), "the VIP");
    }

    #[test]
    fn persistence_looks_at_the_prefix_only() {
        let of = |client: &str| ask(client, "192.0.2.1:80").real;
        for last in 1..50 {
            assert_eq!(of(&format!("198.51.100.{last}:{last}")), of("198.51.100.200:9"));
        }
    }
}
