//! Persistence: a client comes back to the real server it had, for a while.
//!
//! Control owns the [`PersistenceTable`] and writes it when a worker reports that a flow got
//! established. Workers share a [`PersistenceIndex`] and read it for flows they do not know, never
//! for those they do. What the next process needs is written into [`Entry`]s of the flow region;
//! the index, the deadlines and the order of use are private and rebuilt by adoption, where
//! entries that end sooner count as used longer ago.
//!
//! Capacity is fixed. When it is full, an expired entry goes first, then the one whose client
//! has not come for longest; both are counted.

mod deadlines;
mod recency;
#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // test data is cut to size on purpose
mod tests;

use std::{cmp::Reverse, collections::HashSet, net::IpAddr, sync::Arc, time::Duration};

use ahash::RandomState;
use dashmap::DashMap;

use self::{deadlines::Deadlines, recency::Recency};
use super::{
    conntrack::Ticks,
    hash::{ClientPrefix, PersistenceGroup},
    ids::RealId,
    region::{Entry, PersistenceIdentity},
    service::PersistencePolicy,
    time::Time,
};

/// Locks of the index. More than workers and cores there will be, so that a reader rarely meets
/// the writer; a lock is held for one lookup or one insertion.
const SHARDS: usize = 64;

/// Who is kept together: all flows of a client's prefix within a group of services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PersistenceKey {
    /// The client.
    pub client: ClientPrefix,
    /// The services.
    pub group: PersistenceGroup,
}

/// What a worker reports when a flow of a service with persistence got established.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PersistenceEvent {
    /// Whose flow it is.
    pub key: PersistenceKey,
    /// Where it goes.
    pub real: RealId,
    /// How long the service keeps its clients.
    pub timeout: Duration,
    /// When the flow got established.
    pub at: Time,
}

impl PersistenceEvent {
    /// A flow of `client`, in a service with this policy, got established at `real`.
    pub fn established(policy: &PersistencePolicy, client: IpAddr, real: RealId, at: Time) -> Self {
        let key = PersistenceKey { client: policy.prefix(client), group: policy.group };
        Self { key, real, timeout: policy.timeout, at }
    }
}

/// An entry, as it can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PersistenceEntry {
    /// Who is kept.
    pub key: PersistenceKey,
    /// Where.
    pub real: RealId,
    /// From when on the entry counts for nothing.
    pub expires: Time,
}

#[derive(Clone, Copy)]
struct Pin {
    real: RealId,
    expires: Time,
    slot: u32,
}

/// What workers see: read-only, shared, never allocating.
pub struct PersistenceIndex(DashMap<PersistenceKey, Pin, RandomState>);

impl PersistenceIndex {
    fn new(capacity: usize, seed: [u64; 4]) -> Self {
        let hasher = RandomState::with_seeds(seed[0], seed[1], seed[2], seed[3]);
        // Twice the room: no shard grows, however unevenly entries spread over the shards.
        Self(DashMap::with_capacity_and_hasher_and_shard_amount(capacity * 2, hasher, SHARDS))
    }

    /// The real server this client is kept at, if `usable` lets it have new flows.
    ///
    /// `usable` is where the caller says whether a real server is alive and takes new flows, and
    /// turns its id into what it needs; an entry for one that it refuses counts for nothing, so
    /// that a client is never kept at a dead or drained server.
    #[inline]
    pub fn lookup<T>(
        &self,
        now: Time,
        group: PersistenceGroup,
        client: &ClientPrefix,
        usable: impl FnOnce(RealId) -> Option<T>,
    ) -> Option<T> {
        // Copied out, so that the lock is free before the caller's code runs.
        let pin = self.0.get(&PersistenceKey { client: *client, group }).map(|pin| *pin)?;
        if pin.expires > now { usable(pin.real) } else { None }
    }
}

/// What became of entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PersistenceCounters {
    /// Entries for clients that had none.
    pub created: u64,
    /// Entries prolonged, at the same real server.
    pub refreshed: u64,
    /// Entries that changed the real server.
    pub moved: u64,
    /// Expired entries removed in time.
    pub expired: u64,
    /// Expired entries removed because the table was full.
    pub evicted_expired: u64,
    /// Entries in force removed because the table was full.
    pub evicted_oldest: u64,
    /// Entries removed together with their real server.
    pub forgotten: u64,
}

/// What an adoption found, in entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PersistenceAdoption {
    /// Taken over.
    pub adopted: u32,
    /// No longer in force.
    pub expired: u32,
    /// Torn, of another format, or impossible.
    pub invalid: u32,
    /// Of a real server that the directory does not know.
    pub unknown_real: u32,
    /// Of a client that another entry holds for longer.
    pub duplicate: u32,
    /// For which a smaller table had no room; those that end first.
    pub no_room: u32,
}

/// The entries of all services. Owned by control; `S` is memory of the flow region.
pub struct PersistenceTable<S> {
    region: S,
    entries: Box<[Option<PersistenceEntry>]>,
    index: Arc<PersistenceIndex>,
    free: Vec<u32>,
    deadlines: Deadlines,
    recency: Recency,
    counters: PersistenceCounters,
}

impl<S: AsRef<[Entry]>> PersistenceTable<S> {
    /// Takes over the entries that `region` holds; bytes of zero are free ones. `known` says
    /// whether the directory has a real server. `seed` is random and secret, so that clients
    /// cannot choose colliding entries. Allocates everything this table ever needs.
    pub fn adopt(
        region: S,
        seed: [u64; 4],
        now: Time,
        known: impl FnMut(RealId) -> bool,
    ) -> (Self, PersistenceAdoption) {
        let mut report = PersistenceAdoption::default();
        let survivors = surviving(region.as_ref(), now, known, &mut report);
        let capacity = region.as_ref().len();
        let mut table = Self {
            region,
            entries: vec![None; capacity].into_boxed_slice(),
            index: Arc::new(PersistenceIndex::new(capacity, seed)),
            free: Vec::with_capacity(capacity),
            deadlines: Deadlines::new(capacity),
            recency: Recency::new(capacity),
            counters: PersistenceCounters::default(),
        };
        for (slot, entry) in survivors {
            table.hold(slot, entry);
        }
        // Slots are numbered by u32, as in the region; the lowest are used first.
        for slot in (0u32..).take(capacity).collect::<Vec<_>>().into_iter().rev() {
            if table.entries[slot as usize].is_none() {
                table.region.as_ref()[slot as usize].clear();
                table.free.push(slot);
            }
        }
        (table, report)
    }

    /// Enters what an earlier process left in a region of another capacity.
    pub fn import(
        &mut self,
        region: &[Entry],
        now: Time,
        known: impl FnMut(RealId) -> bool,
    ) -> PersistenceAdoption {
        let mut report = PersistenceAdoption::default();
        let mut survivors = surviving(region, now, known, &mut report);
        let excess = survivors.len().saturating_sub(self.free.len());
        for (_, entry) in survivors.drain(excess..) {
            let Some(slot) = self.free.pop() else { break };
            self.enter(slot, entry);
        }
        report.no_room = u32::try_from(excess).unwrap_or(u32::MAX);
        report.adopted = report.adopted.saturating_sub(report.no_room);
        report
    }

    /// The workers' view of this table.
    pub fn index(&self) -> Arc<PersistenceIndex> {
        Arc::clone(&self.index)
    }

    /// Entries that fit.
    pub fn capacity(&self) -> usize {
        self.entries.len()
    }

    /// Entries there are, expired ones included until they are swept.
    pub fn len(&self) -> usize {
        self.deadlines.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What became of entries since the start.
    pub fn counters(&self) -> PersistenceCounters {
        self.counters
    }

    /// A flow got established: its client is kept where it went, from now on. The latest flow
    /// decides, so a client whose real server died follows its next flow.
    pub fn record(&mut self, event: &PersistenceEvent) {
        let entry = PersistenceEntry {
            key: event.key,
            real: event.real,
            expires: event.at + event.timeout,
        };
        let existing = self.index.0.get(&event.key).map(|pin| *pin);
        match existing {
            Some(pin) if pin.real == event.real => {
                self.counters.refreshed += 1;
                let place = &self.region.as_ref()[pin.slot as usize];
                PersistenceIdentity::prolong(place, ticks_until(entry.expires));
                self.hold(pin.slot, entry);
            }
            Some(pin) => {
                self.counters.moved += 1;
                self.enter(pin.slot, entry);
            }
            // A table without any room keeps nobody.
            None => {
                if let Some(slot) = self.free.pop().or_else(|| self.evict(event.at)) {
                    self.counters.created += 1;
                    self.enter(slot, entry);
                }
            }
        }
    }

    /// Removes expired entries, `budget` at most; tells how many.
    pub fn sweep(&mut self, now: Time, budget: usize) -> usize {
        let mut swept = 0;
        while swept < budget {
            match self.deadlines.first() {
                Some((expires, slot)) if expires <= now => self.release(slot),
                _ => break,
            }
            swept += 1;
        }
        self.counters.expired += swept as u64;
        swept
    }

    /// Removes the entries of a real server whose id is about to be free for another.
    pub fn forget(&mut self, real: RealId) {
        for slot in (0u32..).take(self.capacity()) {
            if self.entries[slot as usize].is_some_and(|entry| entry.real == real) {
                self.release(slot);
                self.counters.forgotten += 1;
            }
        }
    }

    /// All entries, the one used last first.
    pub fn entries(&self) -> impl Iterator<Item = PersistenceEntry> + '_ {
        self.recency.latest_first().filter_map(|slot| self.entries[slot as usize])
    }

    /// Frees the slot of the entry that can be missed most.
    fn evict(&mut self, now: Time) -> Option<u32> {
        let slot = match self.deadlines.first() {
            Some((expires, slot)) if expires <= now => {
                self.counters.evicted_expired += 1;
                slot
            }
            _ => {
                let slot = self.recency.oldest()?;
                self.counters.evicted_oldest += 1;
                slot
            }
        };
        self.leave(slot);
        Some(slot)
    }

    /// Writes an entry into a slot of the region, and holds it.
    fn enter(&mut self, slot: u32, entry: PersistenceEntry) {
        let PersistenceKey { client, group } = entry.key;
        let identity = PersistenceIdentity {
            prefix: client.octets(),
            prefix_length: client.length(),
            group: group.0,
            real: entry.real,
        };
        identity.write_until(&self.region.as_ref()[slot as usize], ticks_until(entry.expires));
        self.hold(slot, entry);
    }

    /// Makes the entry that the region has in `slot` the one used last.
    fn hold(&mut self, slot: u32, entry: PersistenceEntry) {
        let PersistenceEntry { key, real, expires } = entry;
        self.entries[slot as usize] = Some(entry);
        self.index.0.insert(key, Pin { real, expires, slot });
        self.deadlines.set(slot, expires);
        self.recency.touch(slot);
    }

    fn release(&mut self, slot: u32) {
        self.leave(slot);
        self.free.push(slot);
    }

    fn leave(&mut self, slot: u32) {
        if let Some(entry) = self.entries[slot as usize].take() {
            self.index.0.remove(&entry.key);
        }
        self.region.as_ref()[slot as usize].clear();
        self.deadlines.remove(slot);
        self.recency.remove(slot);
    }
}

/// The first tick that does not lie before `expires`.
fn ticks_until(expires: Time) -> Ticks {
    Ticks::span(expires.saturating_since(Time::ZERO))
}

/// What a place of the region holds, if it can be.
fn read(place: &Entry) -> Option<Option<PersistenceEntry>> {
    let Some((identity, until)) = PersistenceIdentity::read_until(place).ok()? else {
        return Some(None);
    };
    let PersistenceIdentity { prefix, prefix_length, group, real } = identity;
    let client = ClientPrefix::from_octets(prefix, prefix_length);
    // A prefix with host bits: no lookup would find it.
    if client.octets() != prefix || client.length() != prefix_length {
        return None;
    }
    let key = PersistenceKey { client, group: PersistenceGroup(group) };
    Some(Some(PersistenceEntry { key, real, expires: Time::ZERO + until.to_duration() }))
}

/// The entries of `region` that are believed, those that end first first, with their slots. Of
/// several for one client the one that ends last.
fn surviving(
    region: &[Entry],
    now: Time,
    mut known: impl FnMut(RealId) -> bool,
    report: &mut PersistenceAdoption,
) -> Vec<(u32, PersistenceEntry)> {
    let mut entries = Vec::new();
    for (slot, place) in (0u32..).zip(region) {
        match read(place) {
            Some(None) => {}
            None => report.invalid += 1,
            Some(Some(entry)) if entry.expires <= now => report.expired += 1,
            Some(Some(entry)) if !known(entry.real) => report.unknown_real += 1,
            Some(Some(entry)) => entries.push((slot, entry)),
        }
    }
    // The last to end first, to keep that one of each client; then turned around.
    entries.sort_unstable_by_key(|(slot, entry)| Reverse((entry.expires, *slot)));
    let mut seen = HashSet::with_capacity(entries.len());
    let all = entries.len();
    entries.retain(|(_, entry)| seen.insert(entry.key));
    entries.reverse();
    report.duplicate += u32::try_from(all - entries.len()).unwrap_or(u32::MAX);
    report.adopted += u32::try_from(entries.len()).unwrap_or(u32::MAX);
    entries
}
