//! The bodies of the fuzz targets. Each takes the fuzzer's bytes and panics when a promise is
//! broken; `fuzz_targets/` hands them to libFuzzer, `tests/corpora.rs` replays what was found.

mod tunnel_roundtrip;

pub use tunnel_roundtrip::tunnel_roundtrip;
