//! Records of the region other than flows: real servers, VIPs, persistence. One shape for all.

use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::commit;
use crate::dataplane::{
    conntrack::Ticks,
    ids::{RealId, VipId},
};

/// Format of the entries that this version writes.
const ENTRY_FORMAT: u8 = 1;
/// Words of an entry that its commit word covers.
const IDENTITY: usize = 5;
/// The word that may change without a new commit.
const AGE: usize = 6;

/// Place of one record: commit word, five words of identity, one that changes freely, one spare.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(64))]
pub struct Entry {
    words: [AtomicU64; 8],
}

const _: () = assert!(size_of::<Entry>() == 64);

/// An entry's content is torn, of another format, or impossible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry is torn or of another format")]
pub struct EntryError;

impl Entry {
    fn publish(&self, identity: [u64; IDENTITY], age: u64) {
        let before = self.words[0].load(Ordering::Relaxed);
        let [a, b, c, d, e] = identity;
        let commit = commit::next(before, ENTRY_FORMAT, &identity);
        let stores = [
            (0, commit::taken_back(before)),
            (1, a),
            (2, b),
            (3, c),
            (4, d),
            (5, e),
            (AGE, age),
            (0, commit),
        ];
        commit::publish(&self.words, stores);
    }

    fn read(&self) -> Result<Option<([u64; IDENTITY], u64)>, EntryError> {
        let Some([commit, a, b, c, d, e, age, _]) = commit::read(&self.words) else {
            return Ok(None);
        };
        let identity = [a, b, c, d, e];
        let whole = commit::format_of(commit) == ENTRY_FORMAT && commit::fits(commit, &identity);
        if whole { Ok(Some((identity, age))) } else { Err(EntryError) }
    }

    /// Frees the place.
    pub fn clear(&self) {
        let before = self.words[0].load(Ordering::Relaxed);
        self.words[0].store(commit::taken_back(before), Ordering::Release);
    }
}

/// What can be kept in an [`Entry`].
pub trait Kept: Copy + PartialEq {
    /// Identity in five words.
    fn to_identity(&self) -> [u64; IDENTITY];
    /// The record behind its words; `None` when they are impossible.
    fn from_identity(identity: [u64; IDENTITY]) -> Option<Self>;

    /// Writes the record into a place.
    fn write(&self, entry: &Entry) {
        entry.publish(self.to_identity(), 0);
    }

    /// Reads the record of a place, also while its owner writes it. `None` when it is free.
    ///
    /// # Errors
    /// [`EntryError`] when the content is not a whole record.
    fn read(entry: &Entry) -> Result<Option<Self>, EntryError> {
        let Some((identity, _)) = entry.read()? else { return Ok(None) };
        Self::from_identity(identity).map(Some).ok_or(EntryError)
    }
}

fn address_words(address: [u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, low @ ..] = address;
    [u64::from_be_bytes([a, b, c, d, e, f, g, h]), u64::from_be_bytes(low)]
}

fn address_of(high: u64, low: u64) -> [u8; 16] {
    (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
}

/// A real server, as flows refer to it: by where the tunnel goes, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RealIdentity {
    /// The real server's address, IPv4 as IPv4-mapped.
    pub address: [u8; 16],
    /// How packets are carried to it.
    pub tunnel: TunnelIdentity,
}

/// What makes one address two real servers: two ways in which it is reached. All of it is part of
/// the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TunnelIdentity {
    /// 1 is IP in IP, 2 GRE, 3 GUE, 4 no tunnel but a frame to the real server.
    pub kind: u8,
    /// UDP port of GUE, else 0.
    pub port: u16,
    /// Whether GRE or GUE has a checksum.
    pub checksum: bool,
}

impl TunnelIdentity {
    /// IP in IP: the only kind of earlier versions, which left the other fields 0.
    pub const IPIP: Self = Self { kind: 1, port: 0, checksum: false };
}

impl Kept for RealIdentity {
    fn to_identity(&self) -> [u64; IDENTITY] {
        let [high, low] = address_words(self.address);
        let TunnelIdentity { kind, port, checksum } = self.tunnel;
        [high, low, u64::from(kind), u64::from(port), u64::from(checksum)]
    }

    fn from_identity([high, low, kind, port, checksum]: [u64; IDENTITY]) -> Option<Self> {
        let tunnel = TunnelIdentity {
            kind: u8::try_from(kind).ok()?,
            port: u16::try_from(port).ok()?,
            checksum: [false, true].into_iter().find(|flag| u64::from(*flag) == checksum)?,
        };
        Some(Self { address: address_of(high, low), tunnel })
    }
}

/// A virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VipIdentity {
    /// The address, IPv4 as IPv4-mapped.
    pub address: [u8; 16],
}

impl Kept for VipIdentity {
    fn to_identity(&self) -> [u64; IDENTITY] {
        let [high, low] = address_words(self.address);
        [high, low, 0, 0, 0]
    }

    fn from_identity([high, low, ..]: [u64; IDENTITY]) -> Option<Self> {
        Some(Self { address: address_of(high, low) })
    }
}

/// Clients of a prefix go to this real server, within a persistence group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PersistenceIdentity {
    /// The client's address with its host bits zero, IPv4 as IPv4-mapped.
    pub prefix: [u8; 16],
    /// Length of the prefix, of 128.
    pub prefix_length: u8,
    /// Number of the persistence group.
    pub group: u64,
    /// Where they go.
    pub real: RealId,
}

impl Kept for PersistenceIdentity {
    fn to_identity(&self) -> [u64; IDENTITY] {
        let [high, low] = address_words(self.prefix);
        let length = u64::from(self.prefix_length);
        [high, low, self.group, u64::from(self.real.0), length]
    }

    fn from_identity([high, low, group, real, length]: [u64; IDENTITY]) -> Option<Self> {
        Some(Self {
            prefix: address_of(high, low),
            prefix_length: u8::try_from(length).ok().filter(|&length| length <= 128)?,
            group,
            real: RealId(u32::try_from(real).ok()?),
        })
    }
}

impl PersistenceIdentity {
    /// Writes the record with the moment at which it ends.
    pub fn write_until(&self, entry: &Entry, expires: Ticks) {
        entry.publish(self.to_identity(), u64::from(expires.0));
    }

    /// Moves the end of an entry that holds a record: one store.
    pub fn prolong(entry: &Entry, expires: Ticks) {
        entry.words[AGE].store(u64::from(expires.0), Ordering::Relaxed);
    }

    /// The record of a place with the moment at which it ends; `None` when it is free.
    ///
    /// # Errors
    /// [`EntryError`] when the content is not a whole record.
    pub fn read_until(entry: &Entry) -> Result<Option<(Self, Ticks)>, EntryError> {
        let Some((identity, age)) = entry.read()? else { return Ok(None) };
        let record = Self::from_identity(identity).ok_or(EntryError)?;
        Ok(Some((record, Ticks(u32::try_from(age).map_err(|_| EntryError)?))))
    }
}

/// An id that is a position in a directory.
pub trait DirectoryId: Copy {
    /// What is kept under it.
    type Identity: Kept;
    /// The id of a position.
    fn from_position(position: u32) -> Self;
    /// The position.
    fn position(self) -> usize;
}

impl DirectoryId for RealId {
    type Identity = RealIdentity;

    fn from_position(position: u32) -> Self {
        Self(position)
    }

    fn position(self) -> usize {
        self.index()
    }
}

impl DirectoryId for VipId {
    type Identity = VipIdentity;

    fn from_position(position: u32) -> Self {
        Self(position)
    }

    fn position(self) -> usize {
        self.index()
    }
}

#[cfg(test)]
impl Entry {
    /// Spoils a word of the identity.
    pub(super) fn tear(&self) {
        self.words[1].fetch_xor(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_survive_their_entries(
            address: [u8; 16], kind: u8, port: u16, checksum: bool, prefix_length in 0_u8..=128, group: u64, real: u32, until: u32,
        ) {
            let entry = Entry::default();
            prop_assert_eq!(RealIdentity::read(&entry), Ok(None));
            let record = RealIdentity { address, tunnel: TunnelIdentity { kind, port, checksum } };
            record.write(&entry);
            prop_assert_eq!(RealIdentity::read(&entry), Ok(Some(record)));
            let record = VipIdentity { address };
            record.write(&entry);
            prop_assert_eq!(VipIdentity::read(&entry), Ok(Some(record)));
            let real = RealId(real);
            let record = PersistenceIdentity { prefix: address, prefix_length, group, real };
            record.write_until(&entry, Ticks(until));
            prop_assert_eq!(PersistenceIdentity::read_until(&entry), Ok(Some((record, Ticks(until)))));
            PersistenceIdentity::prolong(&entry, Ticks(7));
            prop_assert_eq!(PersistenceIdentity::read_until(&entry), Ok(Some((record, Ticks(7)))));
            entry.clear();
            prop_assert_eq!(PersistenceIdentity::read_until(&entry), Ok(None));
        }

        #[test]
        fn a_flipped_bit_is_noticed(address: [u8; 16], bit in 0_usize..384) {
            let entry = Entry::default();
            VipIdentity { address }.write(&entry);
            entry.words[bit / 64].fetch_xor(1 << (bit % 64), Ordering::Relaxed);
            prop_assert!(!matches!(VipIdentity::read(&entry), Ok(Some(_))));
        }
    }

    /// A region of a version that knew one kind of tunnel is adopted with its ids.
    #[test]
    fn records_of_ip_in_ip_are_those_of_earlier_versions() {
        let identity = RealIdentity { address: [7; 16], tunnel: TunnelIdentity::IPIP };
        let [high, low, rest @ ..] = identity.to_identity();
        assert_eq!((address_of(high, low), rest), ([7; 16], [1, 0, 0]));
        assert_eq!(RealIdentity::from_identity([high, low, 1, 0, 0]), Some(identity));
        assert_eq!(RealIdentity::from_identity([high, low, 1, 0, 2]), None);
    }
}
