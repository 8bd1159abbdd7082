//! What this folder's tests share: a network namespace of their own.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use crate::testing::skipped;

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
