//! What this package's tests share: a network namespace of their own.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Says by name that a test does not run here; where `ADIT_TEST_REQUIRE_ALL=1` is set, as in CI,
/// that is a failure.
pub(super) fn skipped(name: &str, why: &str) {
    let required = std::env::var_os("ADIT_TEST_REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(!required, "{name} cannot run here, and ADIT_TEST_REQUIRE_ALL=1: {why}");
    eprintln!("skipped: {name}: {why}");
}

/// Runs `test` on a thread with an empty network namespace of its own, which is gone with the thread.
/// Says "skipped" by name where that is not permitted, or fails where nothing may be skipped.
pub(super) fn in_namespace(name: &str, test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if !nix::unistd::geteuid().is_root() {
                return skipped(name, "it needs root");
            }
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs a command of the shell's words in the namespace of the calling thread.
pub(super) fn run(command: &str) {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Asks again and again until there is an answer, for ten seconds at most.
pub(super) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = super::clock::boottime_ns() + 10_000_000_000;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(super::clock::boottime_ns() < deadline, "waited ten seconds for {what}");
        std::thread::yield_now();
    }
}
