//! Fragments of one datagram go to one real server, in any order of arrival, in bounded memory.
//!
//! Only the first fragment has the ports. When it comes, the decision about it is remembered for
//! those that follow; those that came before it are held, copied, until it comes. Nothing is
//! reassembled: the real server does that, and fragments reach it as they were sent.
//!
//! Bounds: a fixed number of datagrams and of held fragments, a share of both per source, and a
//! timeout; what must go is the oldest of the source that asks for too much, else the oldest.

mod piece;
mod pool;
#[cfg(test)]
mod tests;

use std::{
    hash::{BuildHasher, Hasher},
    time::Duration,
};

use ahash::RandomState;

pub use piece::{DatagramKey, Piece, PieceError};

use super::{
    ids::DestinationId, packet::Family, queues::Queues, slot_index::SlotIndex, time::Time,
};
use pool::{Chain, Pool};

/// How long the fragments of a datagram may take. Linux's reassembly gives up after the same time
/// (`ipfrag_time`), so what comes later is of no use to the real server.
pub const FRAGMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Datagrams on their way at once. Most are forgotten within a millisecond, when their last
/// fragment has passed; this is for those whose fragments were lost. 440 KiB.
pub const DATAGRAMS: u32 = 4096;
/// Fragments held for their first one: eleven of the largest UDP datagrams (65,507 bytes in 45
/// fragments of 1,480) that arrive in reverse.
pub const HELD: u32 = 512;
/// Share of both that one source may use, in datagrams and in held fragments. 64 held fragments
/// are the largest datagram in reverse, with some to spare.
const SOURCE_SHARE: u32 = 8;
/// Sources are told apart by a seeded hash with so many values: enough that an attacker seldom
/// shares one with a given client.
const SOURCES: u32 = 1024;
/// Datagrams that one call of [`Fragments::expire`] looks at: keeps it below 50 µs.
const EXPIRE_BUDGET: u32 = 128;

/// Queues by age.
const FREE: usize = 0;
const WAITING: usize = 1;
const DECIDED: usize = 2;

/// A datagram that is on its way.
#[derive(Clone, Copy, Debug)]
struct Entry<D> {
    key: DatagramKey,
    /// Where it goes; `None` until its first fragment comes.
    destination: Option<D>,
    since: Time,
    /// Bytes of payload seen, and in the whole datagram (0: not known yet).
    seen: u32,
    total: u32,
    held: Chain,
    source: u32,
}

impl<D> Entry<D> {
    const fn queue(&self) -> usize {
        if self.destination.is_some() { DECIDED } else { WAITING }
    }

    fn is_expired(&self, now: Time) -> bool {
        now.saturating_since(self.since) > FRAGMENT_TIMEOUT
    }

    fn see(&mut self, piece: &Piece) {
        self.seen = self.seen.saturating_add(u32::from(piece.length));
        if let Some(total) = piece.total() {
            self.total = total;
        }
    }

    const fn is_complete(&self) -> bool {
        self.total != 0 && self.seen >= self.total
    }
}

/// Held fragments that were lost, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Lost {
    /// Had to make room for others.
    pub overflow: u32,
    /// Their first fragment did not come in time.
    pub timeout: u32,
}

impl Lost {
    const fn add(&mut self, entry_expired: bool, fragments: u32) {
        if entry_expired {
            self.timeout += fragments;
        } else {
            self.overflow += fragments;
        }
    }
}

/// What to do with a fragment that is not the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Later<D = DestinationId> {
    /// The first fragment went there.
    Forward(D),
    /// It was copied, and waits for the first.
    Held,
    /// It is larger than the slots, drop it (as overflow).
    Refused,
}

/// A datagram whose first fragment just came: its held fragments can be released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release(u32);

/// What all sources together may use, and what one may.
#[derive(Clone, Copy, Debug, Default)]
struct SourceUse {
    decided: u32,
    held: u32,
}

/// Datagrams on their way, and their held fragments. Where they go is a `D`: a destination, or the
/// worker that has their flow.
#[derive(Debug)]
pub struct Fragments<D = DestinationId> {
    entries: Vec<Entry<D>>,
    index: SlotIndex,
    hasher: RandomState,
    /// Free, waiting and decided entries.
    by_age: Queues,
    /// Waiting and decided entries of each source.
    by_source: Queues,
    sources: Vec<SourceUse>,
    pool: Pool,
}

impl<D: Copy> Fragments<D> {
    /// Room for [`DATAGRAMS`] and [`HELD`] fragments of up to `slot_bytes` (the TAP's MTU). `seed`
    /// is random, drawn by the caller.
    pub fn new(slot_bytes: usize, seed: [u64; 4]) -> Self {
        let blank = Entry {
            key: DatagramKey {
                source: [0; 16],
                destination: [0; 16],
                identification: 0,
                protocol: 0,
            },
            destination: None,
            since: Time::ZERO,
            seen: 0,
            total: 0,
            held: Chain::EMPTY,
            source: 0,
        };
        let capacity = DATAGRAMS as usize;
        let mut by_age = Queues::new(capacity, 3);
        (0..DATAGRAMS).for_each(|entry| by_age.push(FREE, entry));
        Self {
            entries: vec![blank; capacity],
            index: SlotIndex::new(capacity),
            hasher: RandomState::with_seeds(seed[0], seed[1], seed[2], seed[3]),
            by_age,
            by_source: Queues::new(capacity, 2 * SOURCES as usize),
            sources: vec![SourceUse::default(); SOURCES as usize],
            pool: Pool::new(HELD, slot_bytes),
        }
    }

    /// Fragments that are held now.
    pub const fn held(&self) -> u32 {
        HELD - self.pool.free()
    }

    /// Where the first fragment of a datagram went, while others are awaited.
    pub fn decided(&self, now: Time, piece: &Piece) -> Option<D> {
        let key = &piece.key;
        let entries = &self.entries;
        let found = self.index.find(self.hash_of(key), |id| entries[id as usize].key == *key)?;
        let entry = self.entry(found);
        if entry.is_expired(now) { None } else { entry.destination }
    }

    /// The first fragment of a datagram went to `destination`. Take the held ones with
    /// [`release`](Self::release) right after.
    pub fn first(&mut self, now: Time, piece: &Piece, destination: D, lost: &mut Lost) -> Release {
        let source = self.source_of(&piece.key);
        let id = match self.find(now, &piece.key, lost) {
            Some(id) if self.entry(id).destination.is_some() => {
                // A duplicate, or the identification was used again: begin anew.
                self.end(id, false, lost);
                self.begin(now, &piece.key, source, lost)
            }
            Some(id) => id,
            None => self.begin(now, &piece.key, source, lost),
        };
        if self.sources[source as usize].decided >= DATAGRAMS / SOURCE_SHARE {
            self.end_oldest_of(source, DECIDED, lost);
        }
        self.unlist(id);
        let entry = &mut self.entries[id as usize];
        entry.destination = Some(destination);
        entry.since = now;
        entry.see(piece);
        self.enlist(id);
        self.forget_if_done(id, lost);
        Release(id)
    }

    /// The next held fragment of a datagram, in order of arrival.
    pub fn release(&mut self, release: Release) -> Option<&[u8]> {
        let Release(id) = release;
        let entry = &mut self.entries[id as usize];
        entry.destination?;
        if entry.held.length == 0 {
            return None;
        }
        let source = entry.source;
        let mut held = entry.held;
        self.sources[source as usize].held -= 1;
        if held.length == 1 && entry.is_complete() {
            entry.held = Chain::EMPTY;
            let nothing = &mut Lost::default();
            self.end(id, false, nothing);
            return self.pool.release(&mut held);
        }
        let bytes = self.pool.release(&mut held);
        self.entries[id as usize].held = held;
        bytes
    }

    /// A fragment that is not the first came; `packet` is all of it, from its IP header on.
    pub fn later(&mut self, now: Time, piece: &Piece, packet: &[u8], lost: &mut Lost) -> Later<D> {
        let found = self.find(now, &piece.key, lost);
        if let Some(id) = found
            && let Some(destination) = self.entry(id).destination
        {
            self.entries[id as usize].see(piece);
            self.forget_if_done(id, lost);
            return Later::Forward(destination);
        }
        if packet.len() > self.pool.slot_bytes() {
            return Later::Refused;
        }
        let source = self.source_of(&piece.key);
        if self.sources[source as usize].held >= HELD / SOURCE_SHARE {
            self.end_oldest_of(source, WAITING, lost);
        }
        if self.pool.free() == 0
            && let Some(oldest) = self.by_age.oldest(WAITING)
        {
            self.end(oldest, self.entry(oldest).is_expired(now), lost);
        }
        // What was just ended may have been this very datagram: then it begins anew.
        let id = match self.find(now, &piece.key, lost) {
            Some(id) => id,
            None => self.begin(now, &piece.key, source, lost),
        };
        let entry = &mut self.entries[id as usize];
        if !self.pool.hold(&mut entry.held, packet) {
            return Later::Refused;
        }
        entry.see(piece);
        self.sources[source as usize].held += 1;
        Later::Held
    }

    /// Forgets a bounded number of datagrams that took too long.
    pub fn expire(&mut self, now: Time, lost: &mut Lost) {
        for queue in [WAITING, DECIDED] {
            for _ in 0..EXPIRE_BUDGET / 2 {
                match self.by_age.oldest(queue) {
                    Some(id) if self.entry(id).is_expired(now) => self.end(id, true, lost),
                    Some(_) | None => break,
                }
            }
        }
    }

    fn entry(&self, id: u32) -> &Entry<D> {
        &self.entries[id as usize]
    }

    fn hash_of(&self, key: &DatagramKey) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u128(u128::from_be_bytes(key.source));
        hasher.write_u128(u128::from_be_bytes(key.destination));
        hasher.write_u64(u64::from(key.identification) << 8 | u64::from(key.protocol));
        hasher.finish()
    }

    /// The number under which a source's use is counted: its address, or its /64 for IPv6 (who has
    /// one address there has all of them).
    fn source_of(&self, key: &DatagramKey) -> u32 {
        let address = u128::from_be_bytes(key.source);
        let prefix = match Family::of(&key.source) {
            Family::V4 => address,
            Family::V6 => address >> 64,
        };
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u128(prefix);
        let number = hasher.finish() % u64::from(SOURCES);
        u32::try_from(number).expect("a remainder of SOURCES")
    }

    /// The entry of a datagram. One that took too long is ended first.
    fn find(&mut self, now: Time, key: &DatagramKey, lost: &mut Lost) -> Option<u32> {
        let entries = &self.entries;
        let found = self.index.find(self.hash_of(key), |id| entries[id as usize].key == *key)?;
        if self.entry(found).is_expired(now) {
            self.end(found, true, lost);
            return None;
        }
        Some(found)
    }

    /// A new entry, waiting for its first fragment.
    fn begin(&mut self, now: Time, key: &DatagramKey, source: u32, lost: &mut Lost) -> u32 {
        if self.by_age.oldest(FREE).is_none() {
            // Decisions without a datagram behind them go before fragments that wait.
            let oldest = self.by_age.oldest(DECIDED).or_else(|| self.by_age.oldest(WAITING));
            let oldest = oldest.expect("an entry that is not free waits or is decided");
            self.end(oldest, self.entry(oldest).is_expired(now), lost);
        }
        let id = self.by_age.pop(FREE).expect("an entry was just freed");
        self.entries[id as usize] = Entry {
            key: *key,
            destination: None,
            since: now,
            seen: 0,
            total: 0,
            held: Chain::EMPTY,
            source,
        };
        self.index.insert(self.hash_of(key), id);
        self.enlist(id);
        id
    }

    fn end_oldest_of(&mut self, source: u32, queue: usize, lost: &mut Lost) {
        if let Some(oldest) = self.by_source.oldest(source_queue(source, queue)) {
            self.end(oldest, false, lost);
        }
    }

    /// Forgets a datagram and what is held of it.
    fn end(&mut self, id: u32, expired: bool, lost: &mut Lost) {
        self.unlist(id);
        let mut entry = *self.entry(id);
        lost.add(expired, entry.held.length);
        self.sources[entry.source as usize].held -= entry.held.length;
        while self.pool.release(&mut entry.held).is_some() {}
        self.index.remove(self.hash_of(&entry.key), id);
        entry.destination = None;
        self.entries[id as usize] = entry;
        self.by_age.push_oldest(FREE, id);
    }

    /// All its fragments have passed: the identification may be used again.
    fn forget_if_done(&mut self, id: u32, lost: &mut Lost) {
        let entry = self.entry(id);
        if entry.held.length == 0 && entry.is_complete() {
            self.end(id, false, lost);
        }
    }

    fn enlist(&mut self, id: u32) {
        let entry = self.entries[id as usize];
        self.by_age.push(entry.queue(), id);
        self.by_source.push(source_queue(entry.source, entry.queue()), id);
        if entry.destination.is_some() {
            self.sources[entry.source as usize].decided += 1;
        }
    }

    fn unlist(&mut self, id: u32) {
        let entry = self.entries[id as usize];
        self.by_age.unlink(entry.queue(), id);
        self.by_source.unlink(source_queue(entry.source, entry.queue()), id);
        if entry.destination.is_some() {
            self.sources[entry.source as usize].decided -= 1;
        }
    }
}

const fn source_queue(source: u32, queue: usize) -> usize {
    source as usize * 2 + (queue - WAITING)
}
