//! Placement tables, built beside the runtime: the largest take a second, and events, timers and
//! the admin socket must not wait for them.

use super::config;
use crate::dataplane::scheduler::table::{Table, TableCache};
use crate::dataplane::scheduler::{Member, Threshold};
use std::sync::Arc;

/// Tables on loan to another thread.
pub struct TableWork {
    tables: TableCache,
    members: Vec<Vec<Member>>,
}

impl TableWork {
    /// The tables that `config` needs, from and into `tables`.
    pub fn new(tables: TableCache, config: &config::Config) -> Self {
        let services = config.services.iter().filter(|s| s.scheduler.has_table());
        TableWork { tables, members: services.map(members).collect() }
    }

    /// Builds what is missing. Holding on to what it gives keeps them until a snapshot does.
    pub fn build(mut self) -> (TableCache, Vec<Arc<Table>>) {
        // One that cannot be built is reported when the snapshot is made.
        let built = self.members.iter().filter_map(|m| self.tables.table(m).ok()).collect();
        (self.tables, built)
    }
}

/// The real servers of a service, as its scheduler sees them.
pub fn members(service: &config::Service) -> Vec<Member> {
    let member = |real: &config::Real| Member::up(real.address, u32::from(real.weight));
    service.reals.iter().map(member).collect()
}

/// The connection thresholds of a service's real servers, in the same order; empty where none has
/// any. Marks come from `before`, by address.
pub fn thresholds(
    service: &config::Service,
    before: Option<&crate::dataplane::service::Service>,
) -> Box<[Option<Threshold>]> {
    if service.reals.iter().all(|real| real.max_connections.is_none()) {
        return Box::default();
    }
    let previous = |real: &config::Real| {
        let before = before?;
        let position = before.members.iter().position(|m| m.address == real.address)?;
        before.thresholds.get(position)?.as_ref()
    };
    let threshold = |real: &config::Real| {
        let upper = real.max_connections?;
        Some(Threshold::new(upper, real.min_connections, previous(real)))
    };
    service.reals.iter().map(threshold).collect()
}
