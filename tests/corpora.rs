//! Everything the fuzzer ever found stays found: the committed corpora, replayed.

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use adit::dataplane::scheduler::SchedulerKind;
use adit::dataplane::verdict::DropReason;

/// The files of one target's corpus, in a stable order.
fn corpus(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a directory entry").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{folder:?} is empty");
    files
}

/// Runs a target over its corpus and names each file that breaks a promise.
fn replay(target: &str, body: fn(&[u8])) {
    let broken: Vec<_> = corpus(target)
        .into_iter()
        .filter(|file| {
            let data = fs::read(file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
            catch_unwind(|| body(&data)).is_err()
        })
        .collect();
    assert!(broken.is_empty(), "{target} fails on {broken:#?}");
}

#[test]
fn tunnel_roundtrip() {
    replay("tunnel_roundtrip", adit_fuzz::tunnel_roundtrip);
}

#[test]
fn parse() {
    replay("parse", adit_fuzz::parse);
}

#[test]
fn config_text() {
    replay("config_text", adit_fuzz::config_text);
}

#[test]
fn import() {
    replay("import", adit_fuzz::import);
}

#[test]
fn director() {
    replay("director", adit_fuzz::director);
}

#[test]
fn icmp_quotes() {
    replay("icmp_quotes", adit_fuzz::icmp_quotes);
}

/// The seeds that were written by hand, once more under each scheduler: with and without flags and
/// one-packet scheduling. The first two bytes of a sequence choose these.
#[test]
fn the_sequences_keep_their_promises_under_every_scheduler() {
    let named = |file: &PathBuf| {
        let name = file.file_name().and_then(|name| name.to_str()).expect("a readable name");
        !name.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let mut broken = Vec::new();
    for file in corpus("director").into_iter().filter(named) {
        let data = fs::read(&file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        for (scheduler, kind) in (0u8..).zip(SchedulerKind::ALL) {
            for options in [0, 0xc0] {
                let mut data = data.clone();
                let [first, second, ..] = data.as_mut_slice() else { continue };
                (*first, *second) = (scheduler, *second | options);
                if catch_unwind(|| adit_fuzz::director(&data)).is_err() {
                    broken.push((file.clone(), kind.name(), options));
                }
            }
        }
    }
    assert!(broken.is_empty(), "director fails on {broken:#?}");
}

/// What no sequence brings about is not tested by any: the corpus must be able to do everything.
#[test]
fn the_sequences_reach_every_verdict_and_every_drop_reason() {
    let mut all = adit_fuzz::Reached::default();
    for file in corpus("director") {
        let data = fs::read(&file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        let reached = adit_fuzz::director_reaches(&data);
        // A seed named after a drop reason brings that one about.
        let name = file.file_name().and_then(|name| name.to_str()).expect("a readable name");
        if let Some(reason) = name.strip_prefix("drop-") {
            let reason = reason.replace('-', "_");
            let found = reached.dropped.iter().any(|dropped| dropped.name() == reason);
            assert!(found, "{name} does not drop {reason}, but {:?}", reached.dropped);
        }
        all.verdicts.extend(reached.verdicts);
        all.dropped.extend(reached.dropped);
    }
    // The target's director is alone: that is for tests/workers.rs.
    all.dropped.insert(DropReason::HandOverFull);
    let missing: Vec<_> =
        DropReason::ALL.iter().filter(|reason| !all.dropped.contains(reason)).collect();
    assert!(missing.is_empty(), "no sequence drops {missing:?}");
    let verdicts = ["drop", "forward", "fragmented", "hold", "pass", "reply"];
    assert!(all.verdicts.iter().eq(&verdicts), "{:?}", all.verdicts);
}

/// Errors are believed and forwarded, and refused for every reason there is.
#[test]
fn the_quotes_reach_every_answer_to_an_error() {
    let mut all = adit_fuzz::Reached::default();
    for file in corpus("icmp_quotes") {
        let data = fs::read(&file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        let reached = adit_fuzz::icmp_quotes_reach(&data);
        all.verdicts.extend(reached.verdicts);
        all.dropped.extend(reached.dropped);
    }
    let reasons = [
        DropReason::Truncated,
        DropReason::Malformed,
        DropReason::BadChecksum,
        DropReason::IcmpUnsupported,
        DropReason::IcmpNoFlow,
        DropReason::ForgedError,
        DropReason::ErrorIgnored,
        DropReason::PacketTooBig,
        DropReason::HopLimitExceeded,
    ];
    let missing: Vec<_> = reasons.iter().filter(|reason| !all.dropped.contains(reason)).collect();
    assert!(missing.is_empty(), "no error is dropped as {missing:?}");
    // A reply is to an echo request; the target itself sees to it that none is to an error.
    let verdicts = ["drop", "forward", "fragmented", "pass", "reply"];
    assert!(all.verdicts.iter().eq(&verdicts), "{:?}", all.verdicts);
}

/// Every target of `fuzz/fuzz_targets/` has its test here, under the same name.
#[test]
fn no_target_is_left_out() {
    let tests = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpora.rs"))
        .expect("this file");
    let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    for entry in fs::read_dir(targets).expect("the fuzz targets") {
        let path = entry.expect("a directory entry").path();
        let target = path.file_stem().and_then(|stem| stem.to_str()).expect("a readable name");
        let call = format!("replay(\"{target}\", adit_fuzz::{target})");
        assert!(tests.contains(&call), "tests/corpora.rs does not replay {target}");
    }
}
