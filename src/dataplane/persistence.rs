//! Persistence by client prefix.

use super::{
    hash::{ClientPrefix, PersistenceGroup},
    ids::RealId,
    time::Time,
};

/// What workers read on misses.
#[derive(Debug, Default)]
pub struct PersistenceIndex;

impl PersistenceIndex {
    /// The remembered real server of a client, if `usable` maps it to something.
    pub fn lookup<T>(
        &self,
        _now: Time,
        _group: PersistenceGroup,
        _client: &ClientPrefix,
        _usable: impl FnMut(RealId) -> Option<T>,
    ) -> Option<T> {
        None
    }
}
