//! Identifiers that travel between control, core and the flow region.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A number of its own type, so that none is taken for another; 32 bits in the region.
macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord,
            FromBytes, IntoBytes, Immutable, KnownLayout,
        )]
        #[repr(transparent)]
        pub struct $name(pub u32);

        impl $name {
            /// Position in an array of what it names.
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

identifier! {
    /// A real server (address and tunnel) in the region's directory. Never reused while referenced.
    RealId
}

identifier! {
    /// A virtual IP address in the region's directory. Never reused while referenced.
    VipId
}

identifier! {
    /// A destination: one real server in one service. Valid in this process only; flows that are
    /// adopted from an earlier process get theirs anew.
    DestinationId
}

/// Destinations there are numbers for: 65 536 counters take 2.5 MiB, and the largest
/// configuration with a second one draining fits.
pub const DESTINATION_CAPACITY: usize = 65_536;
