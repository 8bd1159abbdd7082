//! A soak of twenty seconds, and what becomes of one that is interrupted. `make soak` is the long one.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use adit_lab::skip::has_root;
use adit_lab::{report, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Each has the computer to itself.
static TURN: Mutex<()> = Mutex::new(());

fn soak(seconds: u32) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit-soak"));
    command.args(["--seconds", &seconds.to_string(), "--seed", "1", "--json"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn twenty_seconds_of_everything_break_nothing() {
    if !has_root() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let output = soak(20).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let summary: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {:?}\n{said}", output.status));
    report(&format!("{} packets, {}", summary["received"], summary["grown"]));
    assert_eq!(summary["violations"], Value::Array(Vec::new()), "{summary:#}\n{said}");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!((&summary["broken_sessions"], &summary["seed"]), (&0.into(), &1.into()));
    // It was a load.
    for (figure, least) in [
        ("sessions", 24),
        ("echoed_bytes", 100_000),
        ("short_sessions", 20),
        ("datagrams", 20),
        ("datagrams_fragmented", 1),
        ("junk_frames", 5000),
        ("flood_syns", 5000),
        ("received", 10_000),
        ("dropped", 1000),
        ("ledger_right", 5),
    ] {
        assert!(summary[figure].as_u64().unwrap() >= least, "{figure}: {summary:#}");
    }
    for step in ["SIGTERM", "SIGKILL"] {
        assert!(summary["steps"][step].as_u64() >= Some(1), "{step}: {summary:#}");
    }
    assert!(summary["grown"]["processes"].as_u64().unwrap() >= 3, "{summary:#}");
}

#[test]
fn an_interrupted_soak_leaves_nothing_and_says_so() {
    if !has_root() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut child = soak(600);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let begins = lines.find(|line| line.ends_with("the load begins")).expect("it comes up");
    let prefix = begins.trim_start_matches("run ").split(':').next().unwrap().to_owned();
    let namespaces = || {
        let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let ours = format!("{prefix}-");
        names.filter(|name| name.file_name().to_string_lossy().starts_with(&ours)).count()
    };
    assert!(namespaces() > 6, "{begins}");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stdout));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["interrupted"], true);
    wait_until(Duration::from_secs(30), "the run's end", || namespaces() == 0).unwrap();
}
