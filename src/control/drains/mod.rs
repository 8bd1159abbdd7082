//! Real servers that an operator keeps from new flows (`adit drain`), by whom, why and since when.
//!
//! A drain is an input of the second stage, as what checks find is: placement stays as it is, known
//! flows go on, and new ones pass the real server over until the drain is taken back. Here is who
//! is drained and what follows, all pure; [`file`] is what outlives the process, [`owner`] who asks,
//! [`sessions`] what is left. The daemon joins them (`daemon/drains.rs`).

pub mod file;
pub mod owner;
pub mod sessions;

use super::config::{Config, Service};
use super::finding::Finding;
use crate::dataplane::scheduler::Member;
use crate::dataplane::service::ServiceTable;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// Drains at a time: those of a data centre with a thousand real servers, and room. Each is some 300
/// bytes of the file.
pub const MOST: usize = 4096;
/// Characters of a reason: a sentence, or the name of a ticket.
pub const LONGEST_REASON: usize = 200;

/// What is drained.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DrainKey {
    /// Name of the service; `None` for all of them, those that come later too.
    pub service: Option<String>,
    /// The real server. A service has an address once, whatever its tunnel.
    pub real: IpAddr,
}

/// Who asked for a drain, why and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// Who, as the kernel says: see [`owner`].
    pub owner: String,
    /// Why, as they said.
    pub reason: Option<String>,
    /// When, in seconds since 1970.
    pub since: u64,
}

/// All drains in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drains(BTreeMap<DrainKey, Drain>);

/// Why a reason is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadReason {
    /// It is too long.
    #[error("a reason has {LONGEST_REASON} characters at most")]
    TooLong,
    /// It would garble logs and terminals.
    #[error("a reason has no control characters")]
    Control,
}

/// Whether a text will do as a reason.
///
/// # Errors
/// Where it is long, or not one line of text.
pub fn check_reason(text: &str) -> Result<(), BadReason> {
    if text.chars().count() > LONGEST_REASON {
        return Err(BadReason::TooLong);
    }
    if text.chars().any(char::is_control) { Err(BadReason::Control) } else { Ok(()) }
}

impl DrainKey {
    /// Whether it concerns a real server of a service.
    #[must_use]
    pub fn concerns(&self, service: &str, real: IpAddr) -> bool {
        self.real == real && self.service.as_deref().is_none_or(|name| name == service)
    }

    /// The services of a configuration whose real server it concerns.
    pub fn services<'c>(&self, config: &'c Config) -> impl Iterator<Item = &'c Service> {
        config.services.iter().filter(|service| {
            service.reals.iter().any(|real| self.concerns(&service.name, real.address))
        })
    }
}

/// As people read it: `10.0.0.3 in service db`.
impl fmt::Display for DrainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.service {
            Some(service) => write!(f, "{} in service {service}", self.real),
            None => write!(f, "{} in all services", self.real),
        }
    }
}

impl Drains {
    /// These drains.
    pub fn of(drains: impl IntoIterator<Item = (DrainKey, Drain)>) -> Self {
        Drains(drains.into_iter().collect())
    }

    /// Whether nobody is drained.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&DrainKey, &Drain)> {
        self.0.iter()
    }

    /// The drain of exactly this.
    #[must_use]
    pub fn get(&self, key: &DrainKey) -> Option<&Drain> {
        self.0.get(key)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The same and one more. One that is there already stays as it is, so that whoever asked first
    /// is known.
    #[must_use]
    pub fn with(&self, key: DrainKey, drain: Drain) -> Self {
        let mut drains = self.0.clone();
        drains.entry(key).or_insert(drain);
        Drains(drains)
    }

    /// The same without one.
    #[must_use]
    pub fn without(&self, key: &DrainKey) -> Self {
        let mut drains = self.0.clone();
        drains.remove(key);
        Drains(drains)
    }

    /// What keeps a real server of a service from new flows: a drain of that service, or else one of
    /// all services.
    #[must_use]
    pub fn find(&self, service: &str, real: IpAddr) -> Option<(&DrainKey, &Drain)> {
        if self.is_empty() {
            return None;
        }
        let own = DrainKey { service: Some(service.to_owned()), real };
        let all = DrainKey { service: None, real };
        self.0.get_key_value(&own).or_else(|| self.0.get_key_value(&all))
    }

    /// What drains leave of the members of a service for new flows.
    pub fn judge(&self, service: &str, members: &mut [Member]) {
        if self.is_empty() {
            return;
        }
        for member in members {
            member.draining |= self.find(service, member.address).is_some();
        }
    }

    /// Those that concern no real server of a configuration.
    pub fn leaving(&self, config: &Config) -> impl Iterator<Item = (&DrainKey, &Drain)> {
        self.0.iter().filter(|(key, _)| key.services(config).next().is_none())
    }

    /// The same without those.
    #[must_use]
    pub fn staying(&self, config: &Config) -> Self {
        let stays = |(key, _): &(&DrainKey, &Drain)| key.services(config).next().is_some();
        let kept = self.0.iter().filter(stays);
        Drains(kept.map(|(key, drain)| (key.clone(), drain.clone())).collect())
    }

    /// Services that one more drain would leave without a real server for new flows: either all
    /// that have weight are drained then, or nobody is up who is not.
    #[must_use]
    pub fn emptied_by(&self, key: &DrainKey, services: &ServiceTable) -> Vec<String> {
        let mut emptied = Vec::new();
        for service in services.services() {
            // As recorded: workers may not have been told yet.
            let drained = |member: &Member| self.find(&service.name, member.address).is_some();
            let is_up = |member: &Member| Member { draining: false, ..*member }.is_eligible();
            let is_meant = |member: &&Member| key.concerns(&service.name, member.address);
            let meant = service.members.iter().filter(|member| member.weight > 0).find(is_meant);
            let Some(meant) = meant.filter(|member| !drained(member)) else { continue };
            let mut others = service
                .members
                .iter()
                .filter(|member| member.address != meant.address && !drained(member));
            let left_by_weight = others.clone().any(|member| member.weight > 0);
            let left_now = others.any(is_up);
            if !left_by_weight || (is_up(meant) && !left_now) {
                emptied.push(service.name.to_string());
            }
        }
        emptied
    }

    /// Services whose real servers that have weight are all drained.
    pub fn findings(&self, config: &Config) -> Vec<Finding> {
        let drained = |service: &Service, real: IpAddr| self.find(&service.name, real).is_some();
        let is_empty = |service: &&Service| {
            let mut weighty = service.reals.iter().filter(|real| real.weight > 0).peekable();
            weighty.peek().is_some() && weighty.all(|real| drained(service, real.address))
        };
        if self.is_empty() {
            return Vec::new();
        }
        config
            .services
            .iter()
            .filter(is_empty)
            .map(|service| {
                Finding::warning(
                    format!("service {}: every real server is drained", service.name),
                    "new connections are dropped as no_real_server; those there are go on:\n\
                     adit undrain SERVICE REAL",
                )
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
