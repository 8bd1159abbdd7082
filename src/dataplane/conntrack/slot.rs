//! One flow in 64 bytes of the region: survives the process, readable while it is written.
//!
//! Eight words. The first is the commit word (see `region::commit`): a process that dies while it
//! writes a flow leaves a free slot, never a mixture. What changes with packets (words 5 to 7) is
//! overwritten word by word: each word is either old or new.

use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::{
    key::FlowKey,
    state::{Class, Progress, Ticks},
};
use crate::dataplane::{
    ids::{DestinationId, RealId},
    region::{self, format_of, taken_back},
};

/// Format of the slots that this version writes.
pub const SLOT_FORMAT: u8 = 1;

/// Word numbers.
const COMMIT: usize = 0;
const CLIENT: usize = 1;
const PORTS: usize = 3;
const TARGET: usize = 4;
const STATE: usize = 5;
const AGE: usize = 6;
const SEQUENCE: usize = 7;

/// Bits of the state word: created (32), protocol (8), flags (8), class (8), segments (8).
const FLAG_IPV6: u8 = 1;
const FLAG_PROVEN: u8 = 2;
const FLAG_ACKNOWLEDGED: u8 = 4;
const FLAG_REDERIVED: u8 = 8;
const FLAGS_KNOWN: u8 = FLAG_IPV6 | FLAG_PROVEN | FLAG_ACKNOWLEDGED | FLAG_REDERIVED;
/// The part of the state word that never changes: created, protocol, family, origin.
const STATE_IDENTITY: u64 = 0xff_ffff_ffff | ((FLAG_IPV6 | FLAG_REDERIVED) as u64) << 40;

/// A flow as it is kept in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// Identity.
    pub key: FlowKey,
    /// Where the flow goes.
    pub real: RealId,
    /// The same in the running process's configuration.
    pub destination: DestinationId,
    /// Met in its middle and sent to a guessed real server.
    pub rederived: bool,
    /// The part that changes with packets.
    pub progress: Progress,
}

/// Why a slot's content is not a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// Written by another version of the format.
    #[error("slot format {0}")]
    Format(u8),
    /// The check bits don't fit the identity: torn or overwritten.
    #[error("check bits do not match")]
    Torn,
    /// Unknown class, flags, or a family that is not the address's.
    #[error("impossible field")]
    Field,
}

/// A slot of the flow region. See the module for its discipline.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(64))]
pub struct Slot {
    words: [AtomicU64; 8],
}

const _: () = assert!(size_of::<Slot>() == 64 && align_of::<Slot>() == 64);

impl Slot {
    #[inline]
    fn word(&self, number: usize) -> u64 {
        self.words[number].load(Ordering::Relaxed)
    }

    #[inline]
    fn set(&self, number: usize, value: u64) {
        self.words[number].store(value, Ordering::Relaxed);
    }

    /// Whether no flow is in it.
    pub fn is_free(&self) -> bool {
        format_of(self.word(COMMIT)) == 0
    }

    /// Reads the slot while its owner may be writing it. `None` when it is free or just changing.
    ///
    /// # Errors
    /// [`SlotError`] when the content is not a flow of this format.
    pub fn read(&self) -> Result<Option<FlowRecord>, SlotError> {
        let Some(words) = region::read(&self.words) else { return Ok(None) };
        decode(words).map(Some)
    }

    /// Writes a flow: the old one is taken back first, the new one is valid with the last store.
    pub(super) fn publish(&self, record: &FlowRecord) {
        region::publish(&self.words, stores(record, self.word(COMMIT)));
    }

    /// Takes the flow back.
    pub(super) fn clear(&self) {
        self.words[COMMIT].store(taken_back(self.word(COMMIT)), Ordering::Release);
    }

    /// Whether the slot holds this key.
    #[inline]
    pub(super) fn holds(&self, key: [u64; 3], protocol: u8) -> bool {
        self.word(CLIENT) == key[0]
            && self.word(CLIENT + 1) == key[1]
            && self.word(PORTS) == key[2]
            && protocol_of(self.word(STATE)) == protocol
            && !self.is_free()
    }

    /// The key's words and the protocol of an occupied slot.
    pub(super) fn key_words(&self) -> ([u64; 3], u8) {
        let key = [self.word(CLIENT), self.word(CLIENT + 1), self.word(PORTS)];
        (key, protocol_of(self.word(STATE)))
    }

    /// The flow in an occupied slot, as its owner sees it.
    pub(super) fn record(&self) -> FlowRecord {
        let (key, protocol) = self.key_words();
        let state = self.word(STATE);
        FlowRecord {
            key: FlowKey::from_words(key, protocol),
            real: self.real(),
            destination: self.destination(),
            rederived: flags_of(state) & FLAG_REDERIVED != 0,
            progress: self.progress(),
        }
    }

    /// Where the flow goes.
    #[inline]
    pub(super) fn real(&self) -> RealId {
        RealId(low(self.word(TARGET)))
    }

    /// Where the flow goes, in the running process's terms.
    #[inline]
    pub(super) fn destination(&self) -> DestinationId {
        DestinationId(high(self.word(TARGET)))
    }

    /// Gives the flow its destination in this process.
    pub(super) fn set_destination(&self, destination: DestinationId) {
        self.set(TARGET, u64::from(self.real().0) | u64::from(destination.0) << 32);
    }

    /// Whether the flow is absent at `now`.
    #[inline]
    pub(super) fn is_expired(&self, now: Ticks) -> bool {
        let age = self.word(AGE);
        now.since(Ticks(low(age))) > Ticks(high(age))
    }

    /// The changing part of an occupied slot, as its owner sees it.
    #[inline]
    pub(super) fn progress(&self) -> Progress {
        let (state, age) = (self.word(STATE), self.word(AGE));
        // Adoption has checked the number and only `write_progress` stores it.
        let class = Class::from_number(class_of(state)).unwrap_or(Class::HalfOpen);
        progress_of(class, state, age, self.word(SEQUENCE))
    }

    /// Stores the changing part, word by word.
    #[inline]
    pub(super) fn write_progress(&self, progress: &Progress) {
        let identity = self.word(STATE) & STATE_IDENTITY;
        let [state, age, sequence] = progress_words(progress);
        self.set(SEQUENCE, sequence);
        self.set(AGE, age);
        self.set(STATE, identity | state & !STATE_IDENTITY);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "takes the low half")]
const fn low(word: u64) -> u32 {
    word as u32
}

const fn high(word: u64) -> u32 {
    low(word >> 32)
}

const fn protocol_of(state: u64) -> u8 {
    state.to_le_bytes()[4]
}

const fn flags_of(state: u64) -> u8 {
    state.to_le_bytes()[5]
}

const fn class_of(state: u64) -> u8 {
    state.to_le_bytes()[6]
}

/// What the commit word vouches for.
const fn identity(words: &[u64; 8]) -> [u64; 5] {
    let real = low(words[TARGET]) as u64;
    [words[CLIENT], words[CLIENT + 1], words[PORTS], real, words[STATE] & STATE_IDENTITY]
}

fn progress_words(progress: &Progress) -> [u64; 3] {
    let flags = if progress.proven { FLAG_PROVEN } else { 0 }
        | if progress.acknowledged { FLAG_ACKNOWLEDGED } else { 0 };
    let state = u64::from(progress.created.0)
        | u64::from(flags) << 40
        | u64::from(progress.class as u8) << 48
        | u64::from(progress.segments) << 56;
    let age = u64::from(progress.last_seen.0) | u64::from(progress.idle_limit.0) << 32;
    let sequence = u64::from(progress.sequence_end) | u64::from(progress.acknowledgement) << 32;
    [state, age, sequence]
}

fn progress_of(class: Class, state: u64, age: u64, sequence: u64) -> Progress {
    let flags = flags_of(state);
    Progress {
        class,
        proven: flags & FLAG_PROVEN != 0,
        acknowledged: flags & FLAG_ACKNOWLEDGED != 0,
        segments: state.to_le_bytes()[7],
        created: Ticks(low(state)),
        last_seen: Ticks(low(age)),
        idle_limit: Ticks(high(age)),
        sequence_end: low(sequence),
        acknowledgement: high(sequence),
    }
}

/// The stores that put a flow into a slot whose commit word is `commit`, in their order.
fn stores(record: &FlowRecord, commit: u64) -> [(usize, u64); 9] {
    let key = record.key.words();
    let flags = if record.key.is_ipv6() { FLAG_IPV6 } else { 0 }
        | if record.rederived { FLAG_REDERIVED } else { 0 };
    let [state, age, sequence] = progress_words(&record.progress);
    let state = state | u64::from(record.key.protocol) << 32 | u64::from(flags) << 40;
    let target = u64::from(record.real.0) | u64::from(record.destination.0) << 32;
    let words = [0, key[0], key[1], key[2], target, state, age, sequence];
    [
        (COMMIT, taken_back(commit)),
        (CLIENT, key[0]),
        (CLIENT + 1, key[1]),
        (PORTS, key[2]),
        (TARGET, target),
        (STATE, state),
        (AGE, age),
        (SEQUENCE, sequence),
        (COMMIT, region::next(commit, SLOT_FORMAT, &identity(&words))),
    ]
}

fn decode(words: [u64; 8]) -> Result<FlowRecord, SlotError> {
    let commit = words[COMMIT];
    if format_of(commit) != SLOT_FORMAT {
        return Err(SlotError::Format(format_of(commit)));
    }
    if !region::fits(commit, &identity(&words)) {
        return Err(SlotError::Torn);
    }
    let state = words[STATE];
    let key_words = [words[CLIENT], words[CLIENT + 1], words[PORTS]];
    let key = FlowKey::from_words(key_words, protocol_of(state));
    let flags = flags_of(state);
    let class = Class::from_number(class_of(state)).ok_or(SlotError::Field)?;
    if flags & !FLAGS_KNOWN != 0 || (flags & FLAG_IPV6 != 0) != key.is_ipv6() {
        return Err(SlotError::Field);
    }
    Ok(FlowRecord {
        key,
        real: RealId(low(words[TARGET])),
        destination: DestinationId(high(words[TARGET])),
        rederived: flags & FLAG_REDERIVED != 0,
        progress: progress_of(class, state, words[AGE], words[SEQUENCE]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{conntrack::state::Timeouts, ids::VipId, time::Time};
    use proptest::prelude::*;

    fn record(seed: u32) -> FlowRecord {
        let low = seed.to_le_bytes()[0];
        let mut client = [0x20 | low; 16];
        if low.is_multiple_of(2) {
            client[..10].fill(0);
            client[10..12].fill(0xff);
        }
        let observation = crate::dataplane::conntrack::Observation::Datagram;
        let mut progress =
            Progress::begin(Time(u64::from(seed) << 36), &Timeouts::default(), &observation);
        progress.sequence_end = seed.wrapping_mul(77);
        progress.acknowledged = true;
        progress.acknowledgement = !seed;
        FlowRecord {
            key: FlowKey {
                client,
                client_port: 1000 + u16::from(low),
                vip: VipId(seed),
                vip_port: 5432,
                protocol: if low.is_multiple_of(3) { 17 } else { 6 },
            },
            real: RealId(seed + 1),
            destination: DestinationId(seed + 2),
            rederived: low.is_multiple_of(5),
            progress,
        }
    }

    #[test]
    fn a_record_survives_its_slot() {
        let slot = Slot::default();
        assert_eq!(slot.read(), Ok(None));
        for seed in 0..40 {
            slot.publish(&record(seed));
            assert_eq!(slot.read(), Ok(Some(record(seed))));
            assert_eq!(slot.record(), record(seed));
        }
        slot.clear();
        assert_eq!(slot.read(), Ok(None));
    }

    #[test]
    fn a_process_that_dies_between_two_stores_leaves_old_or_free_or_new() {
        let (old, new) = (record(4), record(9));
        for done in 0..=9 {
            let slot = Slot::default();
            slot.publish(&old);
            for (number, value) in stores(&new, slot.word(COMMIT)).into_iter().take(done) {
                slot.set(number, value);
            }
            let expected = match done {
                0 => Some(old),
                1..=8 => None,
                _ => Some(new),
            };
            assert_eq!(slot.read(), Ok(expected), "after {done} stores");
        }
    }

    #[test]
    fn whatever_stores_reach_memory_no_mixture_is_believed() {
        let (old, new) = (record(4), record(9));
        for subset in 0_u32..1 << 9 {
            let slot = Slot::default();
            slot.publish(&old);
            let list = stores(&new, slot.word(COMMIT));
            for (position, (number, value)) in list.into_iter().enumerate() {
                if subset & 1 << position != 0 {
                    slot.set(number, value);
                }
            }
            // What changes with packets is believed word by word; the identity only as a whole.
            if let Ok(Some(read)) = slot.read() {
                let identity = |flow: &FlowRecord| {
                    (flow.key, flow.real, flow.rederived, flow.progress.created)
                };
                let known = [identity(&old), identity(&new)];
                assert!(known.contains(&identity(&read)), "subset {subset:b}: {read:?}");
            }
        }
    }

    #[test]
    fn progress_is_written_without_touching_the_identity() {
        let slot = Slot::default();
        let before = record(9);
        slot.publish(&before);
        let mut progress = before.progress;
        progress.class = Class::Established;
        progress.proven = true;
        progress.segments = 200;
        progress.last_seen = Ticks(u32::MAX);
        progress.sequence_end = 5;
        slot.write_progress(&progress);
        assert_eq!(slot.read(), Ok(Some(FlowRecord { progress, ..before })));
        slot.set_destination(DestinationId(0xffff_ffff));
        let destination = DestinationId(0xffff_ffff);
        assert_eq!(slot.read(), Ok(Some(FlowRecord { progress, destination, ..before })));
    }

    #[test]
    fn impossible_fields_are_named() {
        let slot = Slot::default();
        slot.publish(&record(9));
        let state = slot.word(STATE);
        slot.set(STATE, state & !(0xff << 48));
        assert_eq!(slot.read(), Err(SlotError::Field));
        slot.set(STATE, state | 0x80 << 40);
        assert_eq!(slot.read(), Err(SlotError::Field));
        slot.set(STATE, state ^ 1);
        assert_eq!(slot.read(), Err(SlotError::Torn));
        slot.set(STATE, state);
        slot.set(COMMIT, slot.word(COMMIT) & !0xff | 9);
        assert_eq!(slot.read(), Err(SlotError::Format(9)));
    }

    proptest! {
        #[test]
        fn no_single_bit_of_the_identity_can_flip_unnoticed(seed in 0_u32..1000, bit in 0_usize..328) {
            let slot = Slot::default();
            slot.publish(&record(seed));
            let (number, bit) = match bit {
                0..192 => (CLIENT + bit / 64, bit % 64),
                192..224 => (TARGET, bit - 192),
                224..264 => (STATE, bit - 224),
                _ => (COMMIT, bit - 264),
            };
            slot.set(number, slot.word(number) ^ 1 << bit);
            prop_assert!(!matches!(slot.read(), Ok(Some(_))));
        }
    }
}
