//! Encapsulation and decapsulation against etherparse.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| adit_fuzz::tunnel_roundtrip(data));
