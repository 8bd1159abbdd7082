//! Numbers for egress paths: which socket of the worker leads where.
//!
//! A number is not given to another path while a snapshot that uses it may still be in force: a
//! change first installs new paths, then publishes the snapshot, then removes those that only the
//! old one needed, and the worker sees the three as one.

use crate::dataplane::verdict::EgressId;
use std::collections::BTreeMap;

/// The first number that is free for paths; 0 is the TAP.
const FIRST: u16 = 1;

/// Paths and their numbers. `T` says where a path leads.
#[derive(Debug, Clone)]
pub struct EgressPaths<T> {
    known: BTreeMap<T, EgressId>,
    capacity: u16,
}

/// What a change of the wanted paths asks of the worker.
#[derive(Debug)]
pub struct PathChange<T, Open> {
    /// Paths to install before the new snapshot.
    pub install: Vec<(EgressId, Open)>,
    /// Paths to remove after it.
    pub remove: Vec<EgressId>,
    /// Paths in force after it.
    pub after: PathsInForce<T>,
    /// Whether a wanted path is missing: it could not be opened, or no number was left.
    pub incomplete: bool,
}

/// Paths that a change leaves in force.
#[derive(Debug)]
pub struct PathsInForce<T>(BTreeMap<T, EgressId>);

impl<T: Ord + Copy> EgressPaths<T> {
    /// No paths yet, and numbers below `capacity`.
    #[must_use]
    pub fn new(capacity: u16) -> Self {
        EgressPaths { known: BTreeMap::new(), capacity }
    }

    /// Where a path leads.
    #[must_use]
    pub fn target(&self, id: EgressId) -> Option<&T> {
        self.known.iter().find(|(_, known)| **known == id).map(|(target, _)| target)
    }

    /// Plans a change to exactly `wanted`. New paths are opened by `open`; one that it cannot open
    /// is left out.
    ///
    /// Nothing has changed until [`commit`](Self::commit).
    pub fn plan<Open>(
        &self,
        wanted: impl IntoIterator<Item = T>,
        mut open: impl FnMut(&T) -> Option<Open>,
    ) -> PathChange<T, Open> {
        let mut after = BTreeMap::new();
        let mut install = Vec::new();
        let mut incomplete = false;
        let mut free = (FIRST..self.capacity)
            .map(EgressId)
            .filter(|id| !self.known.values().any(|used| used == id));
        for target in wanted {
            if after.contains_key(&target) {
                continue;
            }
            if let Some(id) = self.known.get(&target) {
                after.insert(target, *id);
            } else if let Some(opened) = open(&target)
                && let Some(id) = free.next()
            {
                install.push((id, opened));
                after.insert(target, id);
            } else {
                incomplete = true;
            }
        }
        let remove =
            self.known.iter().filter(|(t, _)| !after.contains_key(t)).map(|(_, id)| *id).collect();
        PathChange { install, remove, after: PathsInForce(after), incomplete }
    }

    /// Takes a change over that the worker has been given.
    pub fn commit(&mut self, after: PathsInForce<T>) {
        self.known = after.0;
    }

    /// Forgets a path that the worker could not install: it is planned anew.
    pub fn forget(&mut self, id: EgressId) {
        self.known.retain(|_, known| *known != id);
    }
}

impl<T: Ord> PathsInForce<T> {
    /// The number of a path in force after the change; `None` where it could not be opened.
    pub fn id(&self, target: &T) -> Option<EgressId> {
        self.0.get(target).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_and_are_not_reused_at_once() {
        let mut paths = EgressPaths::new(5);
        let open = |t: &char| (*t != 'x').then_some(*t);
        let first = paths.plan(['a', 'b', 'a', 'x'], open);
        assert_eq!(first.install, [(EgressId(1), 'a'), (EgressId(2), 'b')]);
        assert_eq!((first.after.id(&'b'), first.after.id(&'x')), (Some(EgressId(2)), None));
        assert!(first.incomplete, "x cannot be opened");
        paths.commit(first.after);

        // `c` must not get the number of `a`, which the old snapshot uses until the change.
        let second = paths.plan(['b', 'c'], open);
        assert_eq!(second.install, [(EgressId(3), 'c')]);
        assert_eq!(second.remove, [EgressId(1)]);
        assert!(!second.incomplete);
        paths.commit(second.after);

        let third = paths.plan(['b', 'c', 'd', 'e', 'f'], open);
        assert_eq!(third.install, [(EgressId(1), 'd'), (EgressId(4), 'e')]);
        assert_eq!(third.after.id(&'f'), None, "no number left");
        paths.forget(EgressId(3));
        assert_eq!(paths.plan(['c'], open).install, [(EgressId(1), 'c')], "planned anew");
    }
}
