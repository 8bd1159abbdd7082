//! Identifiers that travel between control, core and the flow region.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A real server (address and tunnel) in the region's directory. Never reused while referenced.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct RealId(pub u32);

impl RealId {
    /// Position in an array of real servers.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A virtual IP address in the region's directory. Never reused while referenced.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct VipId(pub u32);

impl VipId {
    /// Position in an array of virtual addresses.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A destination: one real server in one service. Valid in this process only; flows that are
/// adopted from an earlier process get theirs anew.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct DestinationId(pub u32);

impl DestinationId {
    /// Position in an array of destinations.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}
