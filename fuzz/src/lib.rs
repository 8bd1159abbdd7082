//! The bodies of the fuzz targets. Each takes the fuzzer's bytes and panics when a promise is
//! broken; `fuzz_targets/` hands them to libFuzzer, `tests/corpora.rs` replays what was found.

mod checksums;
mod config_text;
mod director;
mod import;
mod parse;
mod tunnel_roundtrip;

pub use config_text::config_text;
pub use director::{Reached, director, director_reaches, icmp_quotes, icmp_quotes_reach};
pub use import::import;
pub use parse::parse;
pub use tunnel_roundtrip::tunnel_roundtrip;
