//! Whether this host lets a director work: what is seen ([`observe`]) and what it means
//! ([`judge`]). The first does all the looking, the second is pure.

pub mod firewall;
pub mod judge;
pub mod observe;

pub use judge::{MemoryNeeds, judge, missing_capabilities, narrow_tap};
pub use observe::{HostFacts, observe};

pub(crate) use observe::capabilities;
