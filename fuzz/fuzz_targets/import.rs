//! The import from ipvsadm and keepalived.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| adit_fuzz::import(data));
