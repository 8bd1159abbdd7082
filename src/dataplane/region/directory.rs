//! The directories of the region: an id for each real server and each VIP that flows refer to.
//!
//! Control writes them, at its own pace; workers never do. An id is not given to another identity
//! while anything refers to it.

use std::marker::PhantomData;

use super::entry::{DirectoryId, Entry, Kept};

/// Every id is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("directory is full: {capacity} entries")]
pub struct DirectoryFull {
    /// Entries there are.
    pub capacity: usize,
}

/// Ids and what they stand for.
#[derive(Debug)]
pub struct Directory<Id, S> {
    entries: S,
    id: PhantomData<Id>,
}

impl<Id: DirectoryId, S: AsRef<[Entry]>> Directory<Id, S> {
    /// An empty directory, whatever the entries held.
    pub fn new(entries: S) -> Self {
        entries.as_ref().iter().for_each(Entry::clear);
        Self { entries, id: PhantomData }
    }

    /// Takes over the directory of an earlier process. Frees what is torn and says how much that
    /// was; flows that refer to it will be refused by their own adoption.
    pub fn adopt(entries: S) -> (Self, usize) {
        let torn = |entry: &&Entry| Id::Identity::read(entry).is_err();
        let torn = entries.as_ref().iter().filter(torn).inspect(|entry| entry.clear()).count();
        (Self { entries, id: PhantomData }, torn)
    }

    /// What an id stands for.
    pub fn get(&self, id: Id) -> Option<Id::Identity> {
        // Torn entries were freed by adoption, and only this process writes.
        Id::Identity::read(self.entries.as_ref().get(id.position())?).ok().flatten()
    }

    /// Ids there are, in use or not.
    pub fn capacity(&self) -> usize {
        self.entries.as_ref().len()
    }

    /// All ids in use.
    pub fn iter(&self) -> impl Iterator<Item = (Id, Id::Identity)> {
        let ids = (0..).map(Id::from_position);
        ids.map_while(|id| (id.position() < self.entries.as_ref().len()).then_some(id))
            .filter_map(|id| Some((id, self.get(id)?)))
    }

    /// The id of an identity; a new one when it has none yet.
    ///
    /// # Errors
    /// [`DirectoryFull`] when every id is taken: call [`retain`](Self::retain) first.
    pub fn intern(&mut self, identity: Id::Identity) -> Result<Id, DirectoryFull> {
        let mut free = None;
        for (position, entry) in (0..).zip(self.entries.as_ref()) {
            match Id::Identity::read(entry) {
                Ok(Some(known)) if known == identity => return Ok(Id::from_position(position)),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) if free.is_none() => free = Some((position, entry)),
                Ok(None) | Err(_) => {}
            }
        }
        let (position, entry) =
            free.ok_or(DirectoryFull { capacity: self.entries.as_ref().len() })?;
        identity.write(entry);
        Ok(Id::from_position(position))
    }

    /// Frees the ids that nothing refers to any more. The caller has looked at everything that can
    /// refer: config, flows, persistence, and what is in flight in the workers.
    pub fn retain(&mut self, mut is_referenced: impl FnMut(Id, &Id::Identity) -> bool) -> usize {
        let mut freed = 0;
        for (position, entry) in (0..).zip(self.entries.as_ref()) {
            if let Ok(Some(identity)) = Id::Identity::read(entry)
                && !is_referenced(Id::from_position(position), &identity)
            {
                entry.clear();
                freed += 1;
            }
        }
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{
        ids::RealId,
        region::{RealIdentity, TunnelIdentity},
    };
    use std::sync::Arc;

    fn real(number: u8) -> RealIdentity {
        RealIdentity { address: [number; 16], tunnel: TunnelIdentity::IPIP }
    }

    #[test]
    fn an_id_stays_while_it_is_referenced_and_survives_the_process() {
        let entries: Arc<[Entry]> = (0..3).map(|_| Entry::default()).collect();
        let mut directory = Directory::<RealId, _>::new(Arc::clone(&entries));
        assert_eq!(directory.intern(real(1)), Ok(RealId(0)));
        assert_eq!(directory.intern(real(2)), Ok(RealId(1)));
        assert_eq!(directory.intern(real(1)), Ok(RealId(0)));
        let other_tunnel =
            RealIdentity { tunnel: TunnelIdentity { kind: 2, ..TunnelIdentity::IPIP }, ..real(1) };
        assert_eq!(directory.intern(other_tunnel), Ok(RealId(2)));
        assert_eq!(directory.intern(real(4)), Err(DirectoryFull { capacity: 3 }));

        assert_eq!(directory.retain(|id, _| id != RealId(1)), 1);
        let (mut directory, torn) = Directory::<RealId, _>::adopt(entries);
        assert_eq!(torn, 0);
        let known: Vec<_> = directory.iter().collect();
        assert_eq!(known, [(RealId(0), real(1)), (RealId(2), other_tunnel)]);
        assert_eq!(directory.get(RealId(1)), None);
        assert_eq!(directory.get(RealId(3)), None);
        assert_eq!(directory.intern(real(4)), Ok(RealId(1)));
    }

    #[test]
    fn torn_entries_are_freed_and_counted() {
        let entries: Arc<[Entry]> = (0..2).map(|_| Entry::default()).collect();
        let mut directory = Directory::<RealId, _>::new(Arc::clone(&entries));
        directory.intern(real(1)).unwrap();
        directory.intern(real(2)).unwrap();
        entries[0].tear();
        let (directory, torn) = Directory::<RealId, _>::adopt(entries);
        assert_eq!(torn, 1);
        assert_eq!(directory.iter().collect::<Vec<_>>(), [(RealId(1), real(2))]);
    }
}
