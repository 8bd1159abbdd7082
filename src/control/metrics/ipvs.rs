//! The names of the `ipvs` collector of Prometheus' node_exporter (collector/ipvs_linux.go), so
//! that dashboards and rules made for IPVS show Adit.

use super::Reading;
use super::families::{Families, Label, alone};
use crate::control::admin::api::{RealView, ServiceView};
use std::fmt;

/// A real server in a service, with the text of its labels.
struct Backend<'a> {
    real: &'a RealView,
    vip: String,
    address: String,
    port: &'a str,
    protocol: String,
}

impl<'a> Backend<'a> {
    fn new(service: &'a ServiceView, real: &'a RealView) -> Self {
        Backend {
            real,
            vip: service.vip.to_string(),
            address: real.address.to_string(),
            // IPVS writes 0 where a service has every port.
            port: if service.ports == "any" { "0" } else { &service.ports },
            protocol: service.protocol.to_uppercase(),
        }
    }

    /// The tunnel changes no ports, so the real server's is that of the VIP. There are no marks.
    fn labels(&self) -> [Label<'_>; 6] {
        [
            ("local_address", &self.vip),
            ("local_port", self.port),
            ("remote_address", &self.address),
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
    let backends: Vec<Backend<'_>> = configured
        .flat_map(|service| service.reals.iter().map(move |real| Backend::new(service, real)))
        .collect();
    type Take = fn(&RealView) -> u64;
    let gauges: [(&str, &str, Take); 3] = [
        ("node_ipvs_backend_connections_active", "Established flows of a real server.", |real| {
            real.counters.active
        }),
        (
            "node_ipvs_backend_connections_inactive",
            "Flows of a real server that are half-open, unproven or closing.",
            |real| real.counters.inactive,
        ),
        ("node_ipvs_backend_weight", "Configured weight of a real server.", |real| {
            u64::from(real.weight)
        }),
    ];
    for (name, help, take) in gauges {
        families.gauge(name, help, backends.iter().map(|b| (b.labels(), take(b.real))))?;
    }
    Ok(())
}
