//! Whether this host lets a director work: what is seen ([`observe`]) and what it means
//! ([`judge`]). The first does all the looking, the second is pure. [`live`] says what a running
//! director's own state means.

pub mod accepts;
pub mod checks;
pub mod firewall;
pub mod judge;
pub mod live;
pub mod observe;

pub use judge::{
    MemoryNeeds, foreign_source, geometry, judge, missing_accepts, missing_capabilities,
    narrow_tap, no_way,
};
pub use observe::{HostFacts, observe};

pub(crate) use live::BY_THE_KERNEL;
pub(crate) use observe::capabilities;
