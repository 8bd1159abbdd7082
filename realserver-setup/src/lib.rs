//! Real server preparation.
