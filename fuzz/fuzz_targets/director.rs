//! Sequences of packets, time, control and completions through the director's core.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| adit_fuzz::director(data));
