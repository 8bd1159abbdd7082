//! Frames, as the data plane and etherparse read them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| adit_fuzz::parse(data));
