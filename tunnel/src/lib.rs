//! IP tunnels: IPv4 and IPv6 packets inside IPv4 and IPv6, in all four combinations, directly, by
//! GRE or by GUE.
//!
//! Everything here works on byte slices in place: no allocation, no I/O, no state. The rules of
//! the outer header are those of RFC 2003 (IPv4 outside), RFC 2473 (IPv6 outside) and RFC 6040
//! (congestion notification); GRE is that of RFC 2784, GUE that of draft-ietf-intarea-gue-09 as
//! Linux has it; checksums are patched by RFC 1624.
//!
//! * [`OuterTemplate::encapsulate`] writes an outer header into the headroom before a packet.
//! * [`decapsulate`] checks an outer header and gives a view of the packet inside.
//! * [`decrement_hop_limit`] does what a router does to the packet before it is wrapped.
//! * [`fragment`] cuts an outer packet into pieces that fit a path.
//! * [`checksum`] and [`ecn`] hold the arithmetic these share, for callers that build packets.
//!
//! **Invariant:** the inner packet is never changed by `encapsulate`, not by one bit.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod checksum;
pub mod ecn;
pub mod fragment;

mod decapsulate;
mod encapsulation;
mod error;
mod header;
mod hop_limit;
mod outer;

pub use decapsulate::{DecapError, Decapsulated, OuterHeader, decapsulate, decapsulate_with};
pub use encapsulation::{
    Encapsulation, GRE_CHECKSUM_HEADER_LEN, GRE_HEADER_LEN, GUE_HEADER_LEN, GUE_PORT,
    UDP_HEADER_LEN,
};
pub use error::{HeaderError, Layer, LenError};
pub use header::{
    Family, IPV4_HEADER_LEN, IPV6_FRAGMENT_HEADER_LEN, IPV6_HEADER_LEN, PROTOCOL_GRE,
    PROTOCOL_IPV4, PROTOCOL_IPV6, PROTOCOL_UDP,
};
pub use hop_limit::{HopLimitError, decrement_hop_limit};
pub use outer::{EncapError, MAX_OVERHEAD, OuterFields, OuterTemplate, TemplateError, flow_label};

/// The README's example is compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
