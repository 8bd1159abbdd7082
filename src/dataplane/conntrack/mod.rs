//! The flow table of one worker: fixed capacity, outlives the process, never evicts an established
//! flow for another.
//!
//! Flows live in [`Slot`]s of the region. Everything else (hash index, age lists, free list) is
//! private to the process and rebuilt by adoption. A hit touches one line of the index and one slot.

mod adopt;
mod key;
mod slot;
mod state;
mod sweep;
#[cfg(test)]
mod tests;

pub use adopt::{AdoptionReport, Rejection, end};
pub use key::{FlowHasher, FlowKey};
pub use slot::{FlowRecord, SLOT_FORMAT, Slot, SlotError};
pub use state::{Class, Observation, Observed, Progress, TcpSegment, Ticks, Timeouts};
pub use sweep::SWEEP_BUDGET;

use crate::dataplane::{
    ids::{DESTINATION_CAPACITY, DestinationId, RealId},
    queues::Queues,
    slot_index::SlotIndex,
    time::Time,
};

/// Lists a slot can be in. Established flows are in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    /// Not in use.
    Free,
    /// Flows of which only a SYN was seen.
    HalfOpen,
    /// Flows that never were established.
    Unproven,
    /// Flows that were established and are closing.
    Closing,
}

/// Number of lists.
const LISTS: usize = 4;
/// In this order flows are evicted, by and large.
const EVICTION_ORDER: [List; 3] = [List::HalfOpen, List::Unproven, List::Closing];

/// Half-open flows that are looked at for one that can give way: where one service is flooded, most are
/// its own, and the first will do. Each may be a cache miss, some 3 µs together.
pub const HALF_OPEN_LOOKS: usize = 32;

/// A handshake is over within a round trip; a second is more than any path takes, and the time after
/// which a SYN is sent again.
const HANDSHAKE: Ticks = Ticks(16);
/// How long a closing flow must have been silent to go before a young half-open one. Four
/// retransmissions fit (0.2, 0.4, 0.8 and 1.6 s apart), so what is still to be acknowledged has been. One
/// whose client's FIN was forged comes back as established with its next byte, unless it is idle, and
/// would be forgotten after `tcp_fin` in any case.
const SILENCE: Ticks = Ticks(5 * 16);
/// Closing flows that are looked at for one that is silent: the oldest nearly always is, or none.
const CLOSING_LOOKS: usize = 4;

/// A flow found in the table. Valid until the table's next `insert`, `remove` or `sweep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowRef(u32);

/// A flow to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewFlow {
    /// Identity.
    pub key: FlowKey,
    /// Where it goes.
    pub real: RealId,
    /// The same in this process's configuration.
    pub destination: DestinationId,
    /// Met in its middle and sent to a guessed real server.
    pub rederived: bool,
}

/// A flow was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Inserted {
    /// The new flow.
    pub flow: FlowRef,
    /// Its class.
    pub class: Class,
    /// The flow that had to go for it: an earlier one with the same key, or one that was evicted.
    pub ended: Option<Ended>,
}

/// A flow left the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// What it was.
    pub record: FlowRecord,
    /// Why it went.
    pub reason: EndReason,
}

/// Why a flow left the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// Idle for longer than its class allows.
    Expired,
    /// The table was full and the flow was the oldest of the least proven.
    Evicted,
    /// A new flow with the same key took its place.
    Replaced,
    /// Half-open, and its service had as many of these as it may: it gave way to a newer one.
    GaveWay,
    /// Taken out by name.
    Removed,
}

/// Every slot holds an established flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("flow table is full of established flows")]
pub struct TableFull;

/// Flows in the table by class, expired ones included until they are swept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassCounts([u32; 5]);

impl ClassCounts {
    /// Flows of one class.
    pub const fn of(&self, class: Class) -> u32 {
        self.0[class as usize - 1]
    }

    /// Flows of all classes.
    pub fn total(&self) -> u32 {
        self.0.iter().sum()
    }

    fn add(&mut self, class: Class) {
        self.0[class as usize - 1] += 1;
    }

    fn take(&mut self, class: Class) {
        self.0[class as usize - 1] -= 1;
    }
}

/// Memory of a table, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableMemory {
    /// In the region.
    pub slots: usize,
    /// Private: the hash index.
    pub index: usize,
    /// Private: age lists and free list.
    pub links: usize,
}

impl TableMemory {
    /// All of it.
    pub const fn total(&self) -> usize {
        self.slots + self.index + self.links
    }
}

/// What a table of `capacity` flows takes.
pub fn memory_for(capacity: usize) -> TableMemory {
    TableMemory {
        slots: capacity * size_of::<Slot>(),
        index: SlotIndex::memory_for(capacity),
        links: Queues::memory_for(capacity),
    }
}

/// The flows of one worker.
pub struct FlowTable<S> {
    slots: S,
    hasher: FlowHasher,
    index: SlotIndex,
    ages: Queues,
    counts: ClassCounts,
    /// Half-open flows by destination.
    half_open: Box<[u32]>,
    /// Where the sweep goes on.
    hand: u32,
    /// When it last was due.
    swept: Time,
}

impl<S: AsRef<[Slot]>> FlowTable<S> {
    /// An empty table over `slots`, whatever they held. `seed` is random, drawn by the caller.
    ///
    /// # Panics
    /// When there are 2³² slots or more; the config is bounded far below.
    pub fn new(slots: S, seed: [u64; 4]) -> Self {
        let mut table = Self::bare(slots, seed);
        for number in 0..table.count() {
            table.slot(number).clear();
            table.ages.push(List::Free as usize, number);
        }
        table
    }

    /// A table that knows of no slot yet, neither free nor occupied.
    fn bare(slots: S, seed: [u64; 4]) -> Self {
        let capacity = slots.as_ref().len();
        Self {
            slots,
            hasher: FlowHasher::new(seed),
            index: SlotIndex::new(capacity),
            ages: Queues::new(capacity, LISTS),
            counts: ClassCounts::default(),
            half_open: vec![0; DESTINATION_CAPACITY].into(),
            hand: 0,
            swept: Time::ZERO,
        }
    }

    fn count(&self) -> u32 {
        u32::try_from(self.capacity()).expect("max_connections is bounded below 2^32")
    }

    /// Number of flows it can hold.
    pub fn capacity(&self) -> usize {
        self.slots.as_ref().len()
    }

    /// The slots, for those who read along (listing flows, counting references): a slot can be
    /// read at any time, by any thread.
    pub fn slots(&self) -> &[Slot] {
        self.slots.as_ref()
    }

    /// Flows by class.
    pub fn counts(&self) -> ClassCounts {
        self.counts
    }

    #[inline]
    fn slot(&self, number: u32) -> &Slot {
        &self.slots.as_ref()[number as usize]
    }

    fn hash_of(&self, number: u32) -> u64 {
        let (key, protocol) = self.slot(number).key_words();
        self.hasher.hash(key, protocol)
    }

    #[inline]
    fn find(&self, key: &FlowKey) -> (u64, Option<u32>) {
        let words = key.words();
        let hash = self.hasher.hash(words, key.protocol);
        let slots = self.slots.as_ref();
        let found = self.index.find(hash, |slot| slots[slot as usize].holds(words, key.protocol));
        (hash, found)
    }

    /// The flow with this key, unless it is absent or has expired.
    #[inline]
    pub fn lookup(&self, now: Time, key: &FlowKey) -> Option<FlowRef> {
        let (_, found) = self.find(key);
        found.filter(|&slot| !self.slot(slot).is_expired(Ticks::at(now))).map(FlowRef)
    }

    /// Brings what a lookup of this key will touch into the cache, without waiting for it: a batch
    /// whose keys are warmed first has its cache misses at the same time instead of one after the
    /// other. It pays in tables that are larger than the cache (the bench `conntrack` measures it:
    /// a third of the time per hit at a million flows, nothing gained at a thousand).
    #[inline]
    pub fn warm(&self, key: &FlowKey) {
        let hash = self.hasher.hash(key.words(), key.protocol);
        if let Some(slot) = self.index.likely(hash) {
            // Nothing depends on the value; the load only has to happen.
            std::hint::black_box(self.slot(slot).is_free());
        }
    }

    /// Where a flow goes.
    #[inline]
    pub fn real(&self, flow: FlowRef) -> RealId {
        self.slot(flow.0).real()
    }

    /// Where a flow goes, in this process's configuration.
    #[inline]
    pub fn destination(&self, flow: FlowRef) -> DestinationId {
        self.slot(flow.0).destination()
    }

    /// All that is known of a flow.
    pub fn record(&self, flow: FlowRef) -> FlowRecord {
        self.slot(flow.0).record()
    }

    /// Tells the table of a packet of a flow: its age, sequence and class follow.
    #[inline]
    pub fn observe(
        &mut self,
        flow: FlowRef,
        now: Time,
        timeouts: &Timeouts,
        observation: &Observation,
    ) -> Observed {
        let slot = self.slot(flow.0);
        let mut progress = slot.progress();
        let before = (progress.class, progress.proven);
        let observed = progress.observe(now, timeouts, observation);
        slot.write_progress(&progress);
        if let Observed::Moved { from, to } = observed {
            self.relist(flow.0, list_of(before.0, before.1), list_of(to, progress.proven));
            self.counts.take(from);
            self.counts.add(to);
        }
        observed
    }

    fn relist(&mut self, slot: u32, from: Option<List>, to: Option<List>) {
        if from == to {
            return;
        }
        if let Some(from) = from {
            self.ages.unlink(from as usize, slot);
            if from == List::HalfOpen {
                self.count_half_open(self.slot(slot).destination(), u32::wrapping_sub);
            }
        }
        if let Some(to) = to {
            self.ages.push(to as usize, slot);
        }
    }

    fn count_half_open(&mut self, destination: DestinationId, step: fn(u32, u32) -> u32) {
        if let Some(count) = self.half_open.get_mut(destination.index()) {
            *count = step(*count, 1);
        }
    }

    /// Half-open flows to any of these destinations.
    pub fn half_open_to(&self, destinations: &[DestinationId]) -> u32 {
        destinations.iter().filter_map(|id| self.half_open.get(id.index())).sum()
    }

    /// Takes out the oldest half-open flow to any of these destinations, unless more than
    /// [`HALF_OPEN_LOOKS`] flows to others are older.
    pub fn give_way(&mut self, now: Time, destinations: &[DestinationId]) -> Option<Ended> {
        let oldest = self.ages.oldest(List::HalfOpen as usize);
        let victim = std::iter::successors(oldest, |&slot| self.ages.next(slot))
            .take(HALF_OPEN_LOOKS)
            .find(|&slot| destinations.contains(&self.slot(slot).destination()))?;
        Some(self.end(victim, now, EndReason::GaveWay))
    }

    /// Whether a new flow finds a place, if need be that of one that is not established.
    pub fn has_room(&self) -> bool {
        let lists = EVICTION_ORDER.iter().chain([&List::Free]);
        lists.copied().any(|list| self.ages.oldest(list as usize).is_some())
    }

    /// The flow that goes for another when there is no room: the oldest half-open one, else the
    /// oldest unproven, else the oldest that is closing. But a handshake that may just be under way
    /// does not go for a session that has said goodbye and been silent since: such ones would fill
    /// what established flows leave, minutes after minutes, and keep every newcomer out.
    fn victim(&self, now: Time) -> Option<u32> {
        let now = Ticks::at(now);
        let half_open = self.ages.oldest(List::HalfOpen as usize);
        let is_old = |&slot: &u32| now.since(self.slot(slot).progress().created) >= HANDSHAKE;
        let left = || {
            let closing = self.ages.oldest(List::Closing as usize);
            std::iter::successors(closing, |&slot| self.ages.next(slot))
                .take(CLOSING_LOOKS)
                .find(|&slot| now.since(self.slot(slot).progress().last_seen) >= SILENCE)
        };
        half_open
            .filter(is_old)
            .or_else(left)
            .or_else(|| EVICTION_ORDER.iter().find_map(|&list| self.ages.oldest(list as usize)))
    }

    /// Enters a flow that begins with `observation`. A flow with the same key is replaced. When
    /// there is no room, another goes that is not established.
    ///
    /// # Errors
    /// [`TableFull`] when every flow in the table is established.
    pub fn insert(
        &mut self,
        now: Time,
        flow: &NewFlow,
        timeouts: &Timeouts,
        observation: &Observation,
    ) -> Result<Inserted, TableFull> {
        let (hash, same) = self.find(&flow.key);
        let ended = match same {
            Some(slot) => Some(self.end(slot, now, EndReason::Replaced)),
            None if self.ages.oldest(List::Free as usize).is_some() => None,
            None => Some(self.end(self.victim(now).ok_or(TableFull)?, now, EndReason::Evicted)),
        };
        let record = FlowRecord {
            key: flow.key,
            real: flow.real,
            destination: flow.destination,
            rederived: flow.rederived,
            progress: Progress::begin(now, timeouts, observation),
        };
        let slot = self.place(hash, &record).ok_or(TableFull)?;
        Ok(Inserted { flow: FlowRef(slot), class: record.progress.class, ended })
    }

    /// Puts a record whose key is not in the table into a free slot, if there is one.
    fn place(&mut self, hash: u64, record: &FlowRecord) -> Option<u32> {
        let slot = self.ages.oldest(List::Free as usize)?;
        self.ages.unlink(List::Free as usize, slot);
        self.slot(slot).publish(record);
        self.index.insert(hash, slot);
        self.enlist(slot, &record.progress);
        Some(slot)
    }

    fn enlist(&mut self, slot: u32, progress: &Progress) {
        if let Some(list) = list_of(progress.class, progress.proven) {
            self.ages.push(list as usize, slot);
            if list == List::HalfOpen {
                self.count_half_open(self.slot(slot).destination(), u32::wrapping_add);
            }
        }
        self.counts.add(progress.class);
    }

    /// Takes a flow out.
    pub fn remove(&mut self, flow: FlowRef) -> Ended {
        self.end(flow.0, Time::ZERO, EndReason::Removed)
    }

    /// Frees an occupied slot. What had expired by `now` is said to have expired.
    fn end(&mut self, slot: u32, now: Time, reason: EndReason) -> Ended {
        let record = self.slot(slot).record();
        let reason =
            if record.progress.is_expired(Ticks::at(now)) { EndReason::Expired } else { reason };
        let was_indexed = self.index.remove(self.hash_of(slot), slot);
        debug_assert!(was_indexed, "an occupied slot is in the index");
        if let Some(list) = list_of(record.progress.class, record.progress.proven) {
            self.ages.unlink(list as usize, slot);
            if list == List::HalfOpen {
                self.count_half_open(record.destination, u32::wrapping_sub);
            }
        }
        self.counts.take(record.progress.class);
        self.slot(slot).clear();
        self.ages.push_oldest(List::Free as usize, slot);
        Ended { record, reason }
    }
}

/// The list in which a flow waits for its eviction. One that never was established stays among the
/// unproven when it closes: a spoofed FIN must not buy a better place.
const fn list_of(class: Class, proven: bool) -> Option<List> {
    match class {
        Class::HalfOpen => Some(List::HalfOpen),
        Class::Unproven => Some(List::Unproven),
        Class::Established => None,
        Class::ClosingFin | Class::ClosingRst if proven => Some(List::Closing),
        Class::ClosingFin | Class::ClosingRst => Some(List::Unproven),
    }
}
