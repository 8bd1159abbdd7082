//! The region: opening what an earlier process left, or beginning anew.
//!
//! Three cases. The file fits: it is used as it is, and every record in it is checked before it is
//! believed. It is from this boot but of another size (`max_connections` changed): a new one is
//! made, flows are entered again, ids and secrets are kept, and only when all is done does the new
//! file take the old one's place. Otherwise (another boot, another file, torn): a new one.

use crate::dataplane::conntrack::Slot;
use crate::dataplane::ids::{RealId, VipId};
use crate::dataplane::region::{
    BootId, Directory, DirectoryId, Entry, Geometry, HeaderError, Kept, Origin, RegionHeader,
    RegionInfo, RegionLayout, RegionParts, RegionTooShort, Stored,
};
use crate::io::{Placement, Region, RegionError, StateDirectory};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use zerocopy::{FromBytes, IntoBytes};

/// Name of the file in the state directory.
pub const REGION_FILE: &str = "flows";
/// Places for persistence entries: as many as a million sessions of a quarter as many clients
/// need; 16 MiB.
pub const PERSISTENCE_CAPACITY: u32 = 262_144;

/// Why there is no region.
#[derive(Debug, thiserror::Error)]
pub enum FlowRegionError {
    /// Files, memory, locks.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The kernel does not name the boot, so times of an earlier process cannot be told from this
    /// one's.
    #[error("/proc/sys/kernel/random/boot_id cannot be read: {0}")]
    Boot(std::io::Error),
    /// No randomness for secrets.
    #[error("the kernel gives no random bytes: {0}")]
    Random(getrandom::Error),
    /// The mapping does not hold its layout.
    #[error(transparent)]
    Short(#[from] RegionTooShort),
    /// A region just written does not read back.
    #[error("the region does not hold what was written to it: {0}")]
    Header(#[from] HeaderError),
}

/// A region in use. Its memory stays until the process ends.
pub struct FlowRegion {
    /// What it is.
    pub info: RegionInfo,
    /// For moving the cookies' epoch.
    pub header: &'static RegionHeader,
    /// Places of real servers' ids.
    pub(in crate::control) reals: &'static [Entry],
    /// Places of VIPs' ids.
    pub(in crate::control) vips: &'static [Entry],
    /// Persistence records.
    pub persistence: &'static [Entry],
    /// Flow slots of each worker.
    pub flows: Vec<&'static [Slot]>,
    /// The region before, where its flows must be entered again.
    pub before: Option<Before>,
    /// How it came about, for the log.
    pub origin: &'static str,
    /// Puts the file in its place, once its flows are in.
    pub placement: Placement,
    /// Keeps other directors out of the state directory.
    pub lock: StateDirectory,
}

/// A region of another size, to be read once.
pub struct Before {
    /// Flow slots of all its workers.
    pub flows: Vec<&'static [Slot]>,
    /// Persistence records.
    pub persistence: &'static [Entry],
}

impl FlowRegion {
    /// Opens the region in `directory` for this geometry.
    ///
    /// # Errors
    /// When another director has it, there is no room, or no memory.
    pub fn open(directory: &Path, geometry: &Geometry) -> Result<Self, FlowRegionError> {
        let boot = boot_id()?;
        let lock = StateDirectory::lock(directory)?;
        let found = match lock.open(REGION_FILE)? {
            Some(mut region) => match read_header(&mut region) {
                Ok(info) => Some((region, info)),
                Err(error) => {
                    let file = directory.join(REGION_FILE);
                    let file = file.display();
                    tracing::warn!(%file, %error, "not a whole flow table, so a new one is made");
                    None
                }
            },
            None => None,
        };
        match found {
            Some((region, info)) => match info.plan(geometry, boot) {
                Stored::InPlace => adopt(lock, region, &info),
                Stored::Reinsert => reinsert(lock, region, &info, geometry),
                Stored::OtherBoot => {
                    fresh(lock, geometry, boot, "new: the old one is from another boot")
                }
            },
            None => fresh(lock, geometry, boot, "new"),
        }
    }

    /// The directories of ids; those of a new region are empty.
    #[must_use]
    pub fn directories(&self) -> (RealDirectory, VipDirectory) {
        let (reals, torn_reals) = Directory::adopt(self.reals);
        let (vips, torn_vips) = Directory::adopt(self.vips);
        if torn_reals + torn_vips > 0 {
            tracing::warn!(torn_reals, torn_vips, "torn directory entries were dropped");
        }
        (reals, vips)
    }
}

/// Whether the region in `directory` would be used as it is. Any other is made anew beside the old
/// one, which takes room for both.
#[must_use]
pub fn is_usable(directory: &Path, geometry: &Geometry) -> bool {
    let read = || {
        let mut file = File::open(directory.join(REGION_FILE)).ok()?;
        let mut header = RegionHeader::default();
        file.read_exact(header.as_mut_bytes()).ok()?;
        let plan = header.read().ok()?.plan(geometry, boot_id().ok()?);
        // One that was cut afterwards does not hold what its header says.
        let whole = RegionLayout::new(geometry).length as u64;
        Some(plan == Stored::InPlace && file.metadata().ok()?.len() >= whole)
    };
    read().unwrap_or(false)
}

/// Ids of real servers, in the region.
pub type RealDirectory = Directory<RealId, &'static [Entry]>;
/// Ids of VIPs, in the region.
pub type VipDirectory = Directory<VipId, &'static [Entry]>;

/// What a file is.
///
/// # Errors
/// For one that no version of ours wrote whole.
fn read_header(region: &mut Region) -> Result<RegionInfo, FlowRegionError> {
    let bytes = region.bytes_mut();
    let header = bytes.get_mut(..size_of::<RegionHeader>());
    let header = header.and_then(|bytes| <RegionHeader as FromBytes>::mut_from_bytes(bytes).ok());
    let info = header.ok_or(HeaderError::Foreign)?.read()?;
    // One that was cut afterwards does not hold what its header says.
    RegionParts::split(bytes, &RegionLayout::new(&info.geometry))?;
    Ok(info)
}

fn adopt(
    lock: StateDirectory,
    region: Region,
    info: &RegionInfo,
) -> Result<FlowRegion, FlowRegionError> {
    let (bytes, placement) = region.leak();
    let parts = RegionParts::split(bytes, &RegionLayout::new(&info.geometry))?;
    in_use((lock, placement), parts, "taken over")
}

fn fresh(
    lock: StateDirectory,
    geometry: &Geometry,
    boot: BootId,
    origin: &'static str,
) -> Result<FlowRegion, FlowRegionError> {
    let mut cookie_secret = [0; 16];
    getrandom::fill(&mut cookie_secret).map_err(FlowRegionError::Random)?;
    let (parts, placement) = create(&lock, geometry, &Origin { boot, cookie_secret })?;
    in_use((lock, placement), parts, origin)
}

/// A new region with the ids and secrets of `old`, whose flows are still to be entered.
fn reinsert(
    lock: StateDirectory,
    old: Region,
    info: &RegionInfo,
    geometry: &Geometry,
) -> Result<FlowRegion, FlowRegionError> {
    let old = RegionParts::split(old.leak().0, &RegionLayout::new(&info.geometry))?;
    let (parts, placement) = create(&lock, geometry, &info.origin)?;
    parts.header.set_cookie_epoch(info.cookie_epoch);
    copy_ids::<RealId>(old.reals, parts.reals);
    copy_ids::<VipId>(old.vips, parts.vips);
    let mut region = in_use((lock, placement), parts, "entered again in another size")?;
    region.before = Some(Before { flows: old.flows, persistence: old.persistence });
    Ok(region)
}

/// Copies a directory, each entry to the same number: flows refer to numbers.
fn copy_ids<Id: DirectoryId>(old: &[Entry], new: &[Entry]) {
    for (from, to) in old.iter().zip(new) {
        if let Ok(Some(identity)) = Id::Identity::read(from) {
            identity.write(to);
        }
    }
}

fn create(
    lock: &StateDirectory,
    geometry: &Geometry,
    origin: &Origin,
) -> Result<(RegionParts<'static>, Placement), FlowRegionError> {
    let layout = RegionLayout::new(geometry);
    // usize is 64 bits wherever io_uring is.
    let region = lock.create(REGION_FILE, layout.length as u64)?;
    let (bytes, placement) = region.leak();
    let parts = RegionParts::split(bytes, &layout)?;
    parts.header.write(geometry, origin);
    Ok((parts, placement))
}

fn in_use(
    (lock, placement): (StateDirectory, Placement),
    parts: RegionParts<'static>,
    origin: &'static str,
) -> Result<FlowRegion, FlowRegionError> {
    Ok(FlowRegion {
        info: parts.header.read()?,
        header: parts.header,
        reals: parts.reals,
        vips: parts.vips,
        persistence: parts.persistence,
        flows: parts.flows,
        before: None,
        origin,
        lock,
        placement,
    })
}

fn boot_id() -> Result<BootId, FlowRegionError> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(FlowRegionError::Boot)?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    match u128::from_str_radix(&digits, 16) {
        Ok(id) => Ok(BootId(id.to_be_bytes())),
        Err(error) => Err(FlowRegionError::Boot(std::io::Error::other(error))),
    }
}
