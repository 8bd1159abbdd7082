//! First page of the region: what it is, how large, from which boot.

use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::commit;

/// Format of the region that this version writes. It covers the layout of areas; slots and entries
/// carry a format of their own.
pub const REGION_FORMAT: u8 = 1;
/// First word of every region: "AditFlow".
const MAGIC: u64 = u64::from_be_bytes(*b"AditFlow");

/// Word numbers. The commit word covers words 1 to 9.
const COMMIT: usize = 0;
const COVERED: std::ops::Range<usize> = 1..10;
const EPOCH: usize = 10;

/// How large the areas are, in records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Areas of flow slots.
    pub workers: u32,
    /// Slots of each.
    pub flows_per_worker: u32,
    /// Places for real servers.
    pub reals: u32,
    /// Places for VIPs.
    pub vips: u32,
    /// Places for persistence.
    pub persistence: u32,
}

impl Geometry {
    /// The geometry for a configuration. Flows are shared out evenly, rounded up.
    pub fn new(max_connections: u32, workers: u32, persistence: u32) -> Self {
        Self {
            workers,
            flows_per_worker: max_connections.div_ceil(workers.max(1)),
            reals: super::REAL_CAPACITY,
            vips: super::VIP_CAPACITY,
            persistence,
        }
    }
}

/// The kernel's `boot_id`: times of another boot mean nothing in this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootId(pub [u8; 16]);

/// Where a region comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Boot in which its times count; they are `CLOCK_BOOTTIME`.
    pub boot: BootId,
    /// Root of the secrets behind the outer ids, drawn at random with the region.
    pub cookie_secret: [u8; 16],
}

/// Shows the boot, never the secret.
impl std::fmt::Debug for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Origin").field("boot", &self.boot).finish_non_exhaustive()
    }
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// Sizes of the areas.
    pub geometry: Geometry,
    /// Where it comes from.
    pub origin: Origin,
    /// Epoch of the cookie secrets.
    pub cookie_epoch: u64,
}

/// Why bytes are not a region that this version can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Never written, or its writer died before the end.
    #[error("region was never completed")]
    Empty,
    /// Some other file.
    #[error("not a flow region")]
    Foreign,
    /// Written by another version, more than one format away.
    #[error("region format {0}")]
    Format(u8),
    /// The check bits are wrong.
    #[error("region header is torn")]
    Torn,
}

/// What to do with a region that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Same sizes, same boot: adopt it in place.
    InPlace,
    /// Other sizes: make a new region and re-insert flows, directories and secret into it.
    Reinsert,
    /// From another boot: its flows' times mean nothing; begin anew.
    OtherBoot,
}

impl RegionInfo {
    /// What a director that wants `geometry` in `boot` does with this region.
    pub fn plan(&self, geometry: &Geometry, boot: BootId) -> Stored {
        if self.origin.boot != boot {
            Stored::OtherBoot
        } else if self.geometry == *geometry {
            Stored::InPlace
        } else {
            Stored::Reinsert
        }
    }
}

/// The header. It is written once; only the epoch changes later.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(64))]
pub struct RegionHeader {
    words: [AtomicU64; 16],
}

const _: () = assert!(size_of::<RegionHeader>() == 128);

impl RegionHeader {
    /// Completes a new region whose areas are zeroed: with the last store it is valid.
    pub fn write(&self, geometry: &Geometry, origin: &Origin) {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let [boot_high, boot_low] = words_of(origin.boot.0);
        let [secret_high, secret_low] = words_of(origin.cookie_secret);
        let covered = [
            MAGIC,
            pair(geometry.workers, geometry.flows_per_worker),
            pair(geometry.reals, geometry.vips),
            u64::from(geometry.persistence),
            boot_high,
            boot_low,
            secret_high,
            secret_low,
            0,
        ];
        let before = self.words[COMMIT].load(Ordering::Relaxed);
        let mut stores = [(COMMIT, commit::taken_back(before)); 12];
        for (place, (number, value)) in COVERED.zip(covered).enumerate() {
            stores[place + 1] = (number, value);
        }
        stores[10] = (EPOCH, 0);
        stores[11] = (COMMIT, commit::next(before, REGION_FORMAT, &covered));
        commit::publish(&self.words, stores);
    }

    /// Says what the region is.
    ///
    /// # Errors
    /// [`HeaderError`] when it is not a whole region of this version's format.
    pub fn read(&self) -> Result<RegionInfo, HeaderError> {
        let words: [u64; 16] =
            std::array::from_fn(|number| self.words[number].load(Ordering::Acquire));
        let commit = words[COMMIT];
        let [magic, flows, directory, persistence, boot_high, boot_low, secret_high, secret_low, _] =
            [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|offset| words[COVERED.start + offset]);
        if words.iter().all(|&word| word == 0) || (magic == MAGIC && commit::format_of(commit) == 0)
        {
            return Err(HeaderError::Empty);
        }
        if magic != MAGIC {
            return Err(HeaderError::Foreign);
        }
        if commit::format_of(commit) != REGION_FORMAT {
            return Err(HeaderError::Format(commit::format_of(commit)));
        }
        if !commit::fits(commit, &words[COVERED]) {
            return Err(HeaderError::Torn);
        }
        let [workers, flows_per_worker] = halves(flows);
        let [reals, vips] = halves(directory);
        let [persistence, _] = halves(persistence);
        Ok(RegionInfo {
            geometry: Geometry { workers, flows_per_worker, reals, vips, persistence },
            origin: Origin {
                boot: BootId(bytes_of(boot_high, boot_low)),
                cookie_secret: bytes_of(secret_high, secret_low),
            },
            cookie_epoch: words[EPOCH],
        })
    }

    /// Moves on to another epoch of the cookie secrets.
    pub fn set_cookie_epoch(&self, epoch: u64) {
        self.words[EPOCH].store(epoch, Ordering::Relaxed);
    }
}

fn words_of(bytes: [u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, low @ ..] = bytes;
    [u64::from_be_bytes([a, b, c, d, e, f, g, h]), u64::from_be_bytes(low)]
}

fn bytes_of(high: u64, low: u64) -> [u8; 16] {
    (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
}

#[expect(clippy::cast_possible_truncation, reason = "takes the halves apart")]
fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> RegionHeader {
        let header = RegionHeader::default();
        let origin = Origin { boot: BootId([3; 16]), cookie_secret: [4; 16] };
        header.write(&Geometry::new(1001, 4, 77), &origin);
        header
    }

    #[test]
    fn says_what_it_is() {
        let info = written().read().unwrap();
        assert_eq!(info.geometry.flows_per_worker, 251);
        assert_eq!((info.geometry.workers, info.geometry.persistence), (4, 77));
        let boot = BootId([3; 16]);
        assert_eq!(info.plan(&info.geometry, boot), Stored::InPlace);
        assert_eq!(info.plan(&Geometry::new(1001, 3, 77), boot), Stored::Reinsert);
        assert_eq!(info.plan(&info.geometry, BootId([0; 16])), Stored::OtherBoot);
        assert!(!format!("{info:?}").contains("cookie_secret"));
    }

    #[test]
    fn refuses_what_it_is_not() {
        let change = |number: usize, mask: u64| {
            let header = written();
            header.words[number].fetch_xor(mask, Ordering::Relaxed);
            header.read().unwrap_err()
        };
        assert_eq!(RegionHeader::default().read(), Err(HeaderError::Empty));
        assert_eq!(change(1, 1), HeaderError::Foreign);
        assert_eq!(change(0, 3), HeaderError::Format(2));
        assert_eq!(change(0, 1), HeaderError::Empty);
        for number in 2..10 {
            assert_eq!(change(number, 1 << 40), HeaderError::Torn);
        }
    }
}
