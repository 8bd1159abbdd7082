//! The thread that carries the packets: where it runs, and that the daemon does not outlive it.

use std::fs;
use std::thread;

use adit_lab::topology::{TAP, vip};
use adit_lab::{Caller, Director, SERVE_PORT, wait_until};
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::{SOON, clean_lab, config, start};

/// The worker's thread by its number, and its `status` as the kernel has it.
fn worker(director: &Director) -> (Pid, String) {
    let process = director.status().unwrap()["pid"].as_u64().unwrap();
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let mut workers = threads.flatten().filter_map(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).ok()?;
        let is_worker = status.lines().next()? == "Name:\tadit-worker";
        let number = thread.file_name().to_str()?.parse().ok()?;
        is_worker.then(|| (Pid::from_raw(number), status))
    });
    let worker = workers.next().expect("a worker's thread");
    assert!(workers.next().is_none(), "one worker is configured");
    worker
}

#[test]
fn the_worker_has_one_core_to_run_on() {
    let lab = clean_lab();
    let director = start(&lab, &config(&lab));
    let (_, status) = worker(&director);
    let cores = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).unwrap();
    assert!(cores.parse::<u32>().is_ok(), "not one core: {cores}");
}

#[test]
fn a_worker_that_dies_takes_the_daemon_down() {
    let lab = clean_lab();
    let director = start(&lab, &config(&lab));
    Caller::new(&lab.client, vip(SERVE_PORT)).whoami().unwrap();
    lab.director().sh(&format!("ip link del {TAP}")).unwrap();
    let status = director.process().wait_exit(SOON).unwrap();
    assert!(!status.success(), "{status}");
    assert!(status.code().is_some(), "it was to end by itself, not by a signal: {status}");
    let log = director.log();
    let last = log.lines().last().unwrap_or_default();
    for words in ["the worker ended", "the TAP cannot be read", "deleted"] {
        assert!(last.contains(words), "the log's last line does not say what happened: {log}");
    }
}

/// A thread alone can only be stopped by a debugger.
#[test]
fn a_worker_that_is_stuck_takes_the_daemon_down() {
    let lab = clean_lab();
    let director = start(&lab, &config(&lab));
    Caller::new(&lab.client, vip(SERVE_PORT)).whoami().unwrap();
    let (thread, _) = worker(&director);
    // The kernel knows a debugger by its thread; with that it lets go.
    let status = thread::scope(|scope| {
        let debugger = scope.spawn(|| {
            ptrace::seize(thread, Options::empty()).unwrap();
            ptrace::interrupt(thread).unwrap();
            let mut ended = None;
            let end = wait_until(SOON, "the end of a daemon whose worker is stuck", || {
                // A thread that is being debugged ends when its debugger has heard of it.
                let _ = waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
                ended = director.process().exit_status().unwrap();
                ended.is_some()
            });
            end.map(|()| ended)
        });
        debugger.join().unwrap()
    });
    let status = status.unwrap_or_else(|error| panic!("{error}: {}", director.log())).unwrap();
    assert_eq!(status.code(), Some(1), "{status}: {}", director.log());
    let log = director.log();
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains("it is stuck since"), "the last line does not say what happened: {log}");
}
