//! What a running director shows of itself, for Prometheus: text exposition format 0.0.4. Every
//! name is in docs/metrics.md.
//!
//! Metrics are made from the views of the admin interface, so that both say the same. Views are
//! taken apart field by field: one that is new does not compile until somebody has said what
//! becomes of it here. What workers count is picked by name; a test holds that none is left out.

mod director;
mod drains;
mod families;
mod health;
mod ipvs;
pub mod listener;
mod services;
#[cfg(test)]
mod tests;

use super::admin::api::{Services, Status};
use super::admin::query::{Query, QueryError};
use super::finding::Severity;
use families::Families;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::registry::Registry;
use std::fmt;
use std::str::FromStr;

/// `Content-Type` of an exposition.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// When a finding was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// In the configuration in force.
    Config,
    /// On the host, when the director started.
    Start,
    /// On the host, at the last look.
    Now,
}

impl Seen {
    const fn name(self) -> &'static str {
        match self {
            Seen::Config => "config",
            Seen::Start => "host_at_start",
            Seen::Now => "host_now",
        }
    }
}

/// What metrics are made of: the views at one moment.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The director.
    pub status: Status,
    /// Its services.
    pub services: Services,
    /// How many findings there are, by when they were seen and how much they matter.
    pub findings: Vec<(Seen, Severity, u64)>,
}

/// Whose names are given beside Adit's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compat {
    /// Those of the `ipvs` collector of Prometheus' node_exporter.
    Ipvs,
}

impl FromStr for Compat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text == "ipvs" { Ok(Compat::Ipvs) } else { Err(()) }
    }
}

impl Compat {
    /// Whose names a request's query asks for.
    ///
    /// # Errors
    /// When it is not understood.
    pub(super) fn asked_by(query: &str) -> Result<Option<Self>, QueryError> {
        Query::parse(query, &["compat"])?.get("compat", "ipvs")
    }
}

/// Every metric of a director, in the text exposition format.
#[must_use]
pub fn exposition(reading: Reading, compat: Option<Compat>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exposition { reading, compat }));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)
        .expect("writing to a String and encoding of counters and gauges cannot fail");
    text
}

#[derive(Debug)]
struct Exposition {
    reading: Reading,
    compat: Option<Compat>,
}

impl Collector for Exposition {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families::new(encoder);
        director::encode(&self.reading, &mut families)?;
        services::encode(&self.reading.services.services, &mut families)?;
        match self.compat {
            Some(Compat::Ipvs) => ipvs::encode(&self.reading, &mut families),
            None => Ok(()),
        }
    }
}
