//! Decisions and holds for fragmented datagrams.

/// Decisions and held fragments.
#[derive(Debug, Default)]
pub struct Fragments;
