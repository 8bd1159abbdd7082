//! For tests that change the network: a namespace of the test's own thread, gone with it.

use crate::testing::{skipped, test_name};
use std::process::Command;

/// Moves this thread into a network namespace of its own. `false` where that is not allowed; the
/// test then says that it is skipped.
pub(crate) fn own_network() -> bool {
    match nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
        Ok(()) => {
            run("ip link set lo up");
            true
        }
        Err(nix::Error::EPERM) => {
            skipped(&test_name(), "it needs root");
            false
        }
        Err(error) => panic!("unshare: {error}"),
    }
}

/// Runs a command (words split at spaces) and returns its output; it must succeed.
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let program = words.next().unwrap();
    let output = Command::new(program).args(words).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command}: {}{stdout}",
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

/// Asks again until `question` has an answer, for at most ten seconds.
pub(crate) async fn eventually<T, F>(what: &str, mut question: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let asking = async {
        loop {
            if let Some(answer) = question().await {
                return answer;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    match tokio::time::timeout(std::time::Duration::from_secs(10), asking).await {
        Ok(answer) => answer,
        Err(_) => panic!("not within ten seconds: {what}"),
    }
}
