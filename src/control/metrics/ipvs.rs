//! The names of the `ipvs` collector of Prometheus' node_exporter (collector/ipvs_linux.go), so
//! that dashboards and rules made for IPVS show Adit.

use super::Reading;
use super::families::{Families, Label, alone};
use crate::control::admin::api::{RealView, ServiceView};
use std::fmt;
use std::net::IpAddr;

/// A real server in a service, with the text of its labels.
struct Backend<'a> {
    service: &'a ServiceView,
    address: IpAddr,
    active: u64,
    inactive: u64,
    weight: u64,
    vip: String,
    address_text: String,
    port: &'a str,
    protocol: String,
}

impl<'a> Backend<'a> {
    fn new(service: &'a ServiceView, real: &'a RealView) -> Self {
        Backend {
            service,
            address: real.address,
            active: real.counters.active,
            inactive: real.counters.inactive,
            weight: real.weight.into(),
            vip: service.vip.to_string(),
            address_text: real.address.to_string(),
            // IPVS writes 0 where a service has every port.
            port: if service.ports == "any" { "0" } else { &service.ports },
            protocol: service.protocol.to_uppercase(),
        }
    }

    fn add(&mut self, real: &RealView) {
        self.active += real.counters.active;
        self.inactive += real.counters.inactive;
        self.weight += u64::from(real.weight);
    }

    /// The tunnel changes no ports, so the real server's is that of the VIP. There are no marks.
    fn labels(&self) -> [Label<'_>; 6] {
        [
            ("local_address", &self.vip),
            ("local_port", self.port),
            ("remote_address", &self.address_text),
            ("remote_port", self.port),
            ("proto", &self.protocol),
            ("local_mark", ""),
        ]
    }
}

pub(super) fn encode(reading: &Reading, families: &mut Families<'_>) -> fmt::Result {
    let totals = &reading.status.totals;
    for (name, help, value) in [
        (
            "node_ipvs_connections_total",
            "Flows placed by schedulers, by persistence or by a guess.",
            totals.scheduled + totals.persisted + totals.rederived,
        ),
        (
            "node_ipvs_incoming_packets_total",
            "Packets forwarded to real servers.",
            totals.forwarded,
        ),
        (
            "node_ipvs_incoming_bytes_total",
            "Bytes of IP packets received from clients for forwarding.",
            totals.received_bytes,
        ),
        (
            "node_ipvs_outgoing_packets_total",
            "Always 0: real servers answer clients directly, past the director.",
            0,
        ),
        (
            "node_ipvs_outgoing_bytes_total",
            "Always 0: real servers answer clients directly, past the director.",
            0,
        ),
    ] {
        families.counter(name, help, alone(value))?;
    }
    // IPVS forgets a service that was removed at once; here its connections end by themselves.
    let configured = reading.services.services.iter().filter(|service| service.configured);
    let mut backends: Vec<Backend<'_>> = Vec::new();
    for (service, real) in configured.flat_map(|s| s.reals.iter().map(move |real| (s, real))) {
        // One that drains by another kind of tunnel than it has now is one of IPVS's with it.
        match backends.last_mut() {
            Some(last) if std::ptr::eq(last.service, service) && last.address == real.address => {
                last.add(real);
            }
            _ => backends.push(Backend::new(service, real)),
        }
    }
    type Take = fn(&Backend<'_>) -> u64;
    let gauges: [(&str, &str, Take); 3] = [
        ("node_ipvs_backend_connections_active", "Established flows of a real server.", |real| {
            real.active
        }),
        (
            "node_ipvs_backend_connections_inactive",
            "Flows of a real server that are half-open, unproven or closing.",
            |real| real.inactive,
        ),
        ("node_ipvs_backend_weight", "Configured weight of a real server.", |real| real.weight),
    ];
    for (name, help, take) in gauges {
        families.gauge(name, help, backends.iter().map(|b| (b.labels(), take(b))))?;
    }
    Ok(())
}
