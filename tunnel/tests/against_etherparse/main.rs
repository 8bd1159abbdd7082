//! The crate against etherparse, which shares no code with it and knows the same RFCs.
//!
//! Inner packets and outer headers are built by one and read by the other, over all four
//! combinations of families.

#![expect(clippy::unwrap_used, reason = "the lint's leave for tests ends at #[test] functions")]

mod checksums;
mod fragments;
mod packets;
mod round_trip;
mod truncation;
