//! The command line says what is wrong with it.

use std::process::{Command, Output};

fn run(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_adit-realserver")).args(words).output().expect("it was built")
}

#[test]
fn wrong_usage_is_told_from_refusal() {
    let usage = run(&["apply"]);
    assert_eq!(usage.status.code(), Some(2), "{usage:?}");
    assert!(String::from_utf8_lossy(&usage.stderr).contains("--vip"), "{usage:?}");

    // Refused before anything is done to this host.
    let refused = run(&["apply", "--vip", "198.51.100.10", "--path-mtu", "100"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("path MTU of 100 bytes"), "{said}");
}
