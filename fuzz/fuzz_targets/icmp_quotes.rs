//! ICMP errors to a VIP and about tunnels, with every kind of quote, through the director's core.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| adit_fuzz::icmp_quotes(data));
