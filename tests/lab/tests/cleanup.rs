//! Whatever ends a lab, nothing of it stays.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use adit_lab::neighbour::resolve;
use adit_lab::{Namespace, Process, Run, binaries, wait_until};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

const SOON: Duration = Duration::from_secs(30);

/// Namespaces, directory and processes of a run.
fn remains(prefix: &str) -> Vec<String> {
    let mut found: Vec<String> = fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(&format!("{prefix}-")))
        .collect();
    let dir = format!("/tmp/adit-lab/{prefix}");
    if Path::new(&dir).exists() {
        found.push(dir);
    }
    found.extend(processes(prefix));
    found
}

/// Processes, by number and command line, whose command line names the run.
fn processes(word: &str) -> Vec<String> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let words = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&words).replace('\0', " ");
            line.split(['/', ' ', '=']).any(|part| part == word).then(|| format!("{pid} {line}"))
        })
        .collect()
}

/// A lab in a process of its own: routers, a guest, a shell that waits.
fn lab_in_another_process() -> (Child, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_adit-lab"))
        .args(["up", "--dc1", "1", "--dc2", "0", "--no-postgres"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first = lines.next().expect("the lab comes up");
    let prefix = first.split(' ').nth(1).unwrap().to_owned();
    assert!(lines.any(|line| line == "up"));
    (child, prefix)
}

fn assert_gone(prefix: &str) {
    wait_until(SOON, "the run's end", || remains(prefix).is_empty())
        .unwrap_or_else(|error| panic!("{error}: {:#?}", remains(prefix)));
}

#[test]
fn a_lab_goes_when_its_process_is_ended_by_a_signal() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let (mut child, prefix) = lab_in_another_process();
        assert!(remains(&prefix).len() > 6, "{:?}", remains(&prefix));
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        child.wait().unwrap();
        assert_gone(&prefix);
    }
}

/// Starts a director on a lab's host and waits until it serves.
fn director_in(prefix: &str) -> Child {
    let dir = format!("/tmp/adit-lab/{prefix}/director");
    let socket = format!("{dir}/adit.sock");
    let config = format!("{dir}/adit.toml");
    let text = format!(
        "[director]\ntap = \"adit0\"\ninterface = \"eth0\"\nmax_connections = 10_000\n\
         state_dir = \"{dir}/state\"\nsocket = \"{socket}\"\n\
         [[service]]\nname = \"bytes\"\nvip = \"198.51.100.10\"\nport = 7000\n\
         [[service.real]]\naddress = \"10.20.0.11\"\n"
    );
    fs::create_dir(format!("{dir}/state")).unwrap();
    fs::write(&config, text).unwrap();
    let adit = binaries::adit().unwrap();
    let log = fs::File::create(format!("{dir}/adit.log")).unwrap();
    let mut director = Command::new("ip")
        .args(["netns", "exec", &format!("{prefix}-director")])
        .arg(&adit)
        .args(["run", "--config", &config])
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    wait_until(SOON, "the director to serve", || {
        assert_eq!(director.try_wait().unwrap(), None, "it ended");
        let listed = Command::new(&adit).args(["list", "--socket", &socket]).output().unwrap();
        listed.status.success()
    })
    .unwrap();
    director
}

#[test]
fn a_director_goes_with_the_lab_that_it_runs_in() {
    let (mut child, prefix) = lab_in_another_process();
    // Nobody's child but this test's: the lab does not know of it.
    let mut director = director_in(&prefix);
    assert!(
        remains(&prefix).iter().any(|line| line.contains("adit run")),
        "{:?}",
        remains(&prefix)
    );
    child.kill().unwrap();
    child.wait().unwrap();
    let mut ended = None;
    wait_until(SOON, "the director's end", || {
        ended = director.try_wait().unwrap();
        ended.is_some()
    })
    .unwrap();
    assert_eq!(ended.and_then(|status| status.signal()), Some(Signal::SIGKILL as i32));
    assert_gone(&prefix);
}

#[test]
fn the_demo_goes_with_an_interrupt_from_the_keyboard() {
    // A terminal's interrupt reaches every process of the group: the director and guests too.
    let mut demo = Command::new(env!("CARGO_BIN_EXE_adit-demo"))
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("$ adit list")), "the director runs");
    let prefix = format!("adl{}-0", demo.id());
    assert!(
        remains(&prefix).iter().any(|what| what.contains("adit.toml")),
        "{:?}",
        remains(&prefix)
    );
    killpg(Pid::from_raw(demo.id().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(demo.wait().unwrap().signal(), Some(libc::SIGINT));
    assert_gone(&prefix);
}

#[test]
fn a_lab_goes_by_the_next_one_when_its_reaper_was_killed_too() {
    let (mut child, prefix) = lab_in_another_process();
    let reaper = processes("adit-lab-cleanup")
        .into_iter()
        .find(|line| line.contains(&format!("{prefix} ")))
        .expect("a reaper");
    let reaper: i32 = reaper.split(' ').next().unwrap().parse().unwrap();
    kill(Pid::from_raw(reaper), Signal::SIGKILL).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    // Another test's new lab may have done it by now; then this one finds it done.
    drop(Run::new().unwrap());
    assert_gone(&prefix);
}

#[test]
fn a_lab_goes_with_a_panic() {
    let mut prefix = String::new();
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let run = Arc::new(Run::new().unwrap());
        prefix = run.prefix().to_owned();
        let host = Namespace::create(&run, "host").unwrap();
        let _forgotten: std::mem::ManuallyDrop<Process> = std::mem::ManuallyDrop::new(
            adit_lab::Host::start(&host, "sleep", &["sleep", "1000"]).unwrap(),
        );
        assert!(remains(&prefix).len() >= 2);
        panic!("as a failing test does");
    }));
    assert!(ended.is_err());
    assert_gone(&prefix);
}

#[test]
fn two_runs_with_the_same_addresses_do_not_meet() {
    let labs: Vec<_> = (0..2)
        .map(|_| {
            let run = Arc::new(Run::new().unwrap());
            let (a, b) =
                (Namespace::create(&run, "a").unwrap(), Namespace::create(&run, "b").unwrap());
            adit_lab::network::wire(&a, "eth0", &b, "eth0").unwrap();
            adit_lab::network::addresses(&a, "eth0", &["192.0.2.1/24"]).unwrap();
            (a, b)
        })
        .collect();
    // Only the first has the other end's address.
    adit_lab::network::addresses(&labs[0].1, "eth0", &["192.0.2.2/24"]).unwrap();
    let who = |host: &Namespace| {
        resolve(host, "eth0", "192.0.2.2".parse().unwrap(), Duration::from_millis(500)).unwrap()
    };
    wait_until(SOON, "the one that has it to answer", || who(&labs[0].0).len() == 1).unwrap();
    assert_eq!(who(&labs[1].0), []);
}
