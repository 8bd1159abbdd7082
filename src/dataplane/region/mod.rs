//! Layout of the region: what a director leaves behind for its successor.
//!
//! One file in `state_dir`, mapped by `io`. A page of header, then the areas, each on a page border
//! so that each can be mapped and owned alone: the directories and the persistence records belong to
//! control, one area of flow slots to each worker. Everything in it is atomics without pointers,
//! so that several threads may read what one of them writes.

mod commit;
mod directory;
mod entry;
mod header;

use std::ops::Range;

use zerocopy::FromBytes;

pub use directory::{Directory, DirectoryFull};
pub use entry::{
    DirectoryId, Entry, EntryError, Kept, PersistenceIdentity, RealIdentity, TunnelIdentity,
    VipIdentity,
};
pub use header::{
    BootId, Geometry, HeaderError, Origin, REGION_FORMAT, RegionHeader, RegionInfo, Stored,
};

pub(in crate::dataplane) use commit::{fits, format_of, next, publish, read, taken_back};

use crate::dataplane::conntrack::Slot;

/// Real servers a region can know. Ten times the largest fleets we were told of, since those that
/// were taken out stay until their flows end; 256 KiB.
pub const REAL_CAPACITY: u32 = 4096;
/// VIPs a region can know: four times what one director is likely to announce; 64 KiB.
pub const VIP_CAPACITY: u32 = 1024;
/// Borders of the areas: the largest page of the machines we run on is 64 KiB, and mappings begin
/// at pages.
const AREA_ALIGNMENT: usize = 65536;

/// Where each area lies, in bytes from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionLayout {
    /// [`RegionHeader`].
    pub header: Range<usize>,
    /// [`Entry`]s of real servers.
    pub reals: Range<usize>,
    /// [`Entry`]s of VIPs.
    pub vips: Range<usize>,
    /// [`Entry`]s of persistence.
    pub persistence: Range<usize>,
    /// [`Slot`]s of each worker.
    pub flows: Vec<Range<usize>>,
    /// Bytes of the whole region.
    pub length: usize,
}

impl RegionLayout {
    /// The layout that follows from a geometry.
    pub fn new(geometry: &Geometry) -> Self {
        let mut end = 0_usize;
        let mut area = |count: u32, size: usize| {
            let start = end;
            end = (start + count as usize * size).next_multiple_of(AREA_ALIGNMENT);
            start..start + count as usize * size
        };
        let header = area(1, size_of::<RegionHeader>());
        let reals = area(geometry.reals, size_of::<Entry>());
        let vips = area(geometry.vips, size_of::<Entry>());
        let persistence = area(geometry.persistence, size_of::<Entry>());
        let flow_area = |_| area(geometry.flows_per_worker, size_of::<Slot>());
        let flows = (0..geometry.workers).map(flow_area).collect();
        Self { header, reals, vips, persistence, flows, length: end }
    }
}

/// The region's areas. All of it can be read by anybody; who writes what is said in the module.
#[derive(Clone, Debug)]
pub struct RegionParts<'a> {
    /// What the region is.
    pub header: &'a RegionHeader,
    /// Directory of real servers.
    pub reals: &'a [Entry],
    /// Directory of VIPs.
    pub vips: &'a [Entry],
    /// Persistence records.
    pub persistence: &'a [Entry],
    /// Flow slots, by worker.
    pub flows: Vec<&'a [Slot]>,
}

/// The bytes are shorter than the layout, or do not begin at a multiple of 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("region needs {needed} bytes aligned to 64, got {actual}")]
pub struct RegionTooShort {
    /// Length the layout asks for.
    pub needed: usize,
    /// Length of the bytes.
    pub actual: usize,
}

impl<'a> RegionParts<'a> {
    /// Views of the areas in the region's bytes.
    ///
    /// # Errors
    /// [`RegionTooShort`] when the bytes do not hold the layout.
    pub fn split(bytes: &'a mut [u8], layout: &RegionLayout) -> Result<Self, RegionTooShort> {
        let error = RegionTooShort { needed: layout.length, actual: bytes.len() };
        let mut rest = bytes;
        let mut taken = 0;
        let mut take = |area: &Range<usize>| -> Result<&'a mut [u8], RegionTooShort> {
            let bytes = std::mem::take(&mut rest);
            let (_, bytes) = bytes.split_at_mut_checked(area.start - taken).ok_or(error)?;
            let (area_bytes, bytes) = bytes.split_at_mut_checked(area.len()).ok_or(error)?;
            (rest, taken) = (bytes, area.end);
            Ok(area_bytes)
        };
        let entries = |bytes: &'a mut [u8]| {
            <[Entry]>::mut_from_bytes(bytes).map(|entries| &*entries).map_err(|_| error)
        };
        let header = RegionHeader::mut_from_bytes(take(&layout.header)?).map_err(|_| error)?;
        let reals = entries(take(&layout.reals)?)?;
        let vips = entries(take(&layout.vips)?)?;
        let persistence = entries(take(&layout.persistence)?)?;
        let mut flows = Vec::with_capacity(layout.flows.len());
        for area in &layout.flows {
            let slots = <[Slot]>::mut_from_bytes(take(area)?).map_err(|_| error)?;
            flows.push(&*slots);
        }
        Ok(Self { header, reals, vips, persistence, flows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{
        conntrack::{FlowKey, FlowTable, NewFlow, Observation, Timeouts},
        ids::{DestinationId, RealId, VipId},
        time::Time,
    };

    fn geometry() -> Geometry {
        Geometry { workers: 2, flows_per_worker: 5, reals: 3, vips: 2, persistence: 4 }
    }

    /// Bytes aligned as a mapping is.
    fn memory(length: usize) -> Vec<Slot> {
        (0..length.div_ceil(64)).map(|_| Slot::default()).collect()
    }

    fn bytes(memory: &mut [Slot]) -> &mut [u8] {
        zerocopy::IntoBytes::as_mut_bytes(memory)
    }

    #[test]
    fn areas_lie_on_borders_without_overlap() {
        let layout = RegionLayout::new(&geometry());
        let mut areas = vec![&layout.header, &layout.reals, &layout.vips, &layout.persistence];
        areas.extend(&layout.flows);
        for pair in areas.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pair:?}");
        }
        assert!(areas.iter().all(|area| area.start % AREA_ALIGNMENT == 0 && !area.is_empty()));
        assert!(areas.last().unwrap().end <= layout.length);
        assert_eq!(layout.flows.len(), 2);
    }

    #[test]
    fn a_region_is_found_again_by_its_successor() {
        let layout = RegionLayout::new(&geometry());
        let mut memory = memory(layout.length);
        let origin = Origin { boot: BootId([7; 16]), cookie_secret: [9; 16] };
        let now = Time(5_000_000_000);
        let key =
            FlowKey { client: [3; 16], client_port: 1, vip: VipId(0), vip_port: 2, protocol: 6 };
        {
            let parts = RegionParts::split(bytes(&mut memory), &layout).unwrap();
            assert_eq!(parts.header.read(), Err(HeaderError::Empty));
            parts.header.write(&geometry(), &origin);
            parts.header.set_cookie_epoch(4);
            let mut reals = Directory::<RealId, _>::new(parts.reals);
            let real = reals
                .intern(RealIdentity { address: [1; 16], tunnel: TunnelIdentity::IPIP })
                .unwrap();
            Directory::<VipId, _>::new(parts.vips)
                .intern(VipIdentity { address: [2; 16] })
                .unwrap();
            let mut table = FlowTable::new(parts.flows[1], [1, 2, 3, 4]);
            let flow = NewFlow { key, real, destination: DestinationId(0), rederived: false };
            let _ = table.insert(now, &flow, &Timeouts::default(), &Observation::Datagram).unwrap();
        }
        let parts = RegionParts::split(bytes(&mut memory), &layout).unwrap();
        let info = parts.header.read().unwrap();
        assert_eq!((info.geometry, info.origin, info.cookie_epoch), (geometry(), origin, 4));
        let (reals, _) = Directory::<RealId, _>::adopt(parts.reals);
        let (table, report) = FlowTable::adopt(parts.flows[1], [5, 6, 7, 8], now, |flow| {
            reals.get(flow.real).map(|_| DestinationId(3))
        });
        assert_eq!(report.adopted, 1);
        let flow = table.lookup(now, &key).unwrap();
        assert_eq!((table.real(flow), table.destination(flow)), (RealId(0), DestinationId(3)));
    }

    #[test]
    fn bytes_that_are_too_few_or_askew_are_refused() {
        let layout = RegionLayout::new(&geometry());
        let mut memory = memory(layout.length);
        let end = layout.flows[1].end;
        assert!(RegionParts::split(&mut bytes(&mut memory)[..end], &layout).is_ok());
        assert!(RegionParts::split(&mut bytes(&mut memory)[..end - 1], &layout).is_err());
        assert!(RegionParts::split(&mut bytes(&mut memory)[1..], &layout).is_err());
    }
}
