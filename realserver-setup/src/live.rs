//! `verify --live`: listens while a director sends probes (`adit probe`), and tells where on the way
//! they are lost.
//!
//! [`packet`] reads what passes the network devices, [`watch`] notes what of it belongs to probes, and
//! [`judge`] makes findings of what was noted: all pure. [`session`] joins them with the sockets
//! ([`sniffer`], [`talk`]).
//!
//! A probe is known by its inner hop limit: the director's host sends it with 255, and at most the
//! director has lowered that by one. Other packets begin with 64 or 128 nearly everywhere.

pub mod evidence;
pub mod judge;
pub mod packet;
pub mod session;
pub mod sniffer;
pub mod talk;
pub mod watch;

/// Port of the VIPs where this listens, unless told otherwise; `adit probe` has the same.
pub const PORT: u16 = 7706;
