//! Services, their real servers, and the ways to these.

use super::drains;
use super::families::{Families, Label};
use super::health;
use crate::control::admin::api::{RealView, ServiceView};
use crate::control::config::ServiceLimits;
use crate::dataplane::counters::DestinationReading;
use std::fmt;
use std::net::IpAddr;

/// A service with the text of its labels.
struct Service<'a> {
    view: &'a ServiceView,
    vip: String,
    reals: Vec<Real<'a>>,
}

/// A real server with the text of its label.
struct Real<'a> {
    view: &'a RealView,
    address: String,
}

impl<'a> Service<'a> {
    fn new(view: &'a ServiceView) -> Self {
        let real = |view: &'a RealView| Real { view, address: view.address.to_string() };
        Service { view, vip: view.vip.to_string(), reals: view.reals.iter().map(real).collect() }
    }

    fn labels(&self) -> [Label<'_>; 4] {
        [
            ("service", &self.view.name),
            ("vip", &self.vip),
            ("port", &self.view.ports),
            ("protocol", &self.view.protocol),
        ]
    }

    fn labels_of<'s>(&'s self, real: &'s Real<'_>) -> [Label<'s>; 6] {
        let [service, vip, port, protocol] = self.labels();
        let [address, tunnel] = real.labels();
        [service, vip, port, protocol, address, tunnel]
    }

    /// Real servers that may get new flows.
    fn eligible(&self) -> u64 {
        let eligible = |real: &&RealView| real.state == "up" && real.effective_weight > 0;
        self.view.reals.iter().filter(eligible).count() as u64
    }
}

pub(super) fn encode(services: &[ServiceView], families: &mut Families<'_>) -> fmt::Result {
    let services: Vec<Service<'_>> = services.iter().map(Service::new).collect();
    of_services(&services, families)?;
    of_real_servers(&services, families)?;
    drains::encode(each(&services), families)?;
    traffic(&services, families)?;
    health::encode(each(&services), families)?;
    paths(&services, families)
}

fn of_services(services: &[Service<'_>], families: &mut Families<'_>) -> fmt::Result {
    let flags: Vec<String> = services.iter().map(|s| s.view.scheduler_flags.join(",")).collect();
    families.info(
        "adit_service_info",
        "Services with their scheduler, its flags, and whether each packet is scheduled anew.",
        services.iter().zip(&flags).map(|(s, flags)| {
            let [service, vip, port, protocol] = s.labels();
            let one_packet = if s.view.one_packet { "true" } else { "false" };
            let scheduler = ("scheduler", s.view.scheduler.as_str());
            let flags = ("flags", flags.as_str());
            [service, vip, port, protocol, scheduler, flags, ("one_packet", one_packet)]
        }),
    )?;
    families.gauge(
        "adit_service_configured",
        "Whether the configuration in force names the service: 1 if so, 0 while it drains.",
        services.iter().map(|s| (s.labels(), u64::from(s.view.configured))),
    )?;
    families.gauge(
        "adit_service_eligible_real_servers",
        "Real servers of the service that may get new flows.",
        services.iter().map(|s| (s.labels(), s.eligible())),
    )?;
    families.gauge(
        "adit_service_table_slots",
        "Slots of the service's placement table, where it has one.",
        services.iter().filter_map(|s| Some((s.labels(), s.view.table_size?))),
    )?;
    families.gauge(
        "adit_service_persistence_seconds",
        "How long a client is kept at its real server, where the service has persistence.",
        services.iter().filter_map(|s| Some((s.labels(), s.view.persistence_seconds?))),
    )?;
    families.gauge(
        "adit_service_limit",
        "What the service takes of new flows, by the key of `limits`, those that are set.",
        services.iter().flat_map(|s| {
            limits(&s.view.limits).into_iter().filter_map(|(key, value)| {
                let [service, vip, port, protocol] = s.labels();
                Some(([service, vip, port, protocol, ("limit", key)], value?))
            })
        }),
    )
}

/// The limits of a service with their keys in the configuration.
fn limits(limits: &ServiceLimits) -> [(&'static str, Option<u32>); 7] {
    let ServiceLimits { total, client, half_open } = *limits;
    [
        ("new_per_second", total.map(|total| total.per_second)),
        ("new_burst", total.map(|total| total.burst)),
        ("client_new_per_second", client.map(|client| client.new.per_second)),
        ("client_new_burst", client.map(|client| client.new.burst)),
        ("client_ipv4_prefix", client.map(|client| client.ipv4_prefix.into())),
        ("client_ipv6_prefix", client.map(|client| client.ipv6_prefix.into())),
        ("half_open", half_open),
    ]
}

/// Every real server with the labels of its service.
fn each<'s>(
    services: &'s [Service<'_>],
) -> impl Iterator<Item = ([Label<'s>; 6], &'s RealView)> + Clone {
    services.iter().flat_map(|s| s.reals.iter().map(move |real| (s.labels_of(real), real.view)))
}

fn of_real_servers(services: &[Service<'_>], families: &mut Families<'_>) -> fmt::Result {
    families.gauge(
        "adit_real_server_weight",
        "Configured weight; 0 drains.",
        each(services).map(|(labels, real)| (labels, real.weight)),
    )?;
    families.gauge(
        "adit_real_server_effective_weight",
        "What is left of the weight for new flows.",
        each(services).map(|(labels, real)| (labels, real.effective_weight)),
    )?;
    families.gauge(
        "adit_real_server_max_connections",
        "Connections from which on it takes no new ones, where there is such a threshold.",
        each(services).filter_map(|(labels, real)| Some((labels, real.max_connections?))),
    )?;
    families.gauge(
        "adit_real_server_min_connections",
        "Connections below which it takes new ones again, where there is such a threshold.",
        each(services).filter_map(|(labels, real)| Some((labels, real.min_connections?))),
    )?;
    families.info(
        "adit_real_server_state_info",
        "The state in force: up, down or unchecked (by its checks), overloaded (at its threshold), \
         drained (weight 0, or by `adit drain`), draining (taken out of the configuration) or cut.",
        each(services).map(|(labels, real)| {
            let [service, vip, port, protocol, address, tunnel] = labels;
            [service, vip, port, protocol, address, tunnel, ("state", real.state.as_str())]
        }),
    )
}

fn traffic(services: &[Service<'_>], families: &mut Families<'_>) -> fmt::Result {
    type Take = fn(&DestinationReading) -> u64;
    // A field that is new is to be given a name below.
    let DestinationReading { connections: _, active: _, inactive: _, packets: _, bytes: _ } =
        DestinationReading::default();
    let counters: [(&str, &str, Take); 3] = [
        ("adit_real_server_connections_total", "Flows begun.", |c| c.connections),
        ("adit_real_server_packets_total", "Packets forwarded.", |c| c.packets),
        ("adit_real_server_bytes_total", "Bytes of inner packets forwarded.", |c| c.bytes),
    ];
    for (name, help, take) in counters {
        let series = each(services).map(|(labels, real)| (labels, take(&real.counters)));
        families.counter(name, help, series)?;
    }
    let gauges: [(&str, &str, Take); 2] = [
        ("adit_real_server_active_connections", "Established flows.", |c| c.active),
        (
            "adit_real_server_inactive_connections",
            "Flows that are half-open, unproven or closing.",
            |c| c.inactive,
        ),
    ];
    for (name, help, take) in gauges {
        let series = each(services).map(|(labels, real)| (labels, take(&real.counters)));
        families.gauge(name, help, series)?;
    }
    Ok(())
}

/// The ways to real servers: one for each kind of tunnel, whatever the number of services they are in.
fn paths(services: &[Service<'_>], families: &mut Families<'_>) -> fmt::Result {
    let mut reals: Vec<&Real<'_>> = services.iter().flat_map(|s| &s.reals).collect();
    reals.sort_by(|a, b| a.way().cmp(&b.way()));
    reals.dedup_by(|a, b| a.way() == b.way());
    families.gauge(
        "adit_path_mtu_bytes",
        "Path MTU in force towards a real server, in bytes of the outer packet.",
        reals.iter().map(|real| (real.labels(), real.view.path_mtu)),
    )?;
    families.gauge(
        "adit_link_mtu_bytes",
        "MTU of the way to a real server as far as this host knows; 0 where there is no way.",
        reals.iter().map(|real| (real.labels(), real.view.link_mtu)),
    )?;
    let ways: Vec<Way> = reals.iter().map(|real| Way::of(real.view)).collect();
    families.info(
        "adit_egress_info",
        "Who sends the packets to a real server: direct (Adit itself), kernel or none (with the \
         reason); and their outer sources, device and next hop.",
        reals.iter().zip(&ways).map(|(real, way)| {
            let [address, tunnel] = real.labels();
            [
                address,
                tunnel,
                ("egress", way.egress.as_str()),
                ("reason", way.reason.as_str()),
                ("source", way.source.as_str()),
                ("interface", way.interface.as_str()),
                ("next_hop", way.next_hop.as_str()),
            ]
        }),
    )
}

impl Real<'_> {
    fn labels(&self) -> [Label<'_>; 2] {
        [("real_server", &self.address), ("tunnel", &self.view.tunnel)]
    }

    /// What makes its way another than that of others.
    fn way(&self) -> (IpAddr, &str) {
        (self.view.address, &self.view.tunnel)
    }
}

/// The words of a way to a real server; empty where there are none.
struct Way {
    egress: String,
    reason: String,
    source: String,
    interface: String,
    next_hop: String,
}

impl Way {
    fn of(view: &RealView) -> Self {
        let RealView {
            address: _,
            weight: _,
            effective_weight: _,
            max_connections: _,
            min_connections: _,
            state: _,
            counters: _,
            tunnel: _,
            source,
            more_sources,
            interface,
            next_hop,
            egress,
            link_mtu: _,
            path_mtu: _,
            health: _,
            drain: _,
        } = view;
        let address = |a: &Option<IpAddr>| a.map(|a| a.to_string()).unwrap_or_default();
        // `kernel (the reason)`, as people see it.
        let (egress, reason) = egress.split_once(" (").unwrap_or((egress, ""));
        Way {
            egress: egress.to_owned(),
            reason: reason.strip_suffix(')').unwrap_or(reason).to_owned(),
            source: source
                .iter()
                .chain(more_sources)
                .map(IpAddr::to_string)
                .collect::<Vec<_>>()
                .join(","),
            interface: interface.clone().unwrap_or_default(),
            next_hop: address(next_hop),
        }
    }
}
