//! The thread that carries the packets: where it runs, and that the daemon does not outlive it.

use std::fs;
use std::thread;

use adit_lab::topology::{TAP, vip};
use adit_lab::{Caller, Director, SERVE_PORT, wait_until};
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::{SOON, clean_lab, config, start};

/// The worker's thread of this name.
pub(crate) fn thread_named(director: &Director, name: &str) -> Pid {
    let process = director.status().unwrap()["pid"].as_u64().unwrap();
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let named: Vec<_> = threads
        .flatten()
        .filter_map(|thread| {
            let comm = fs::read_to_string(thread.path().join("comm")).ok()?;
            let number = thread.file_name().to_str()?.parse().ok()?;
            (comm.trim() == name).then(|| Pid::from_raw(number))
        })
        .collect();
    let [thread] = named[..] else { panic!("{} threads have the name {name}", named.len()) };
    thread
}

/// Stops a worker's thread and waits for the daemon's end; returns the log's last line.
///
/// A thread alone can only be stopped by a debugger.
pub(crate) fn end_by_a_stuck(director: &Director, worker: Pid) -> String {
    // The kernel knows a debugger by its thread; with that it lets go.
    let status = thread::scope(|scope| {
        let debugger = scope.spawn(|| {
            ptrace::seize(worker, Options::empty()).unwrap();
            ptrace::interrupt(worker).unwrap();
            let mut ended = None;
            let end = wait_until(SOON, "the end of a daemon whose worker is stuck", || {
                // A thread that is being debugged ends when its debugger has heard of it.
                let _ = waitpid(worker, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
                ended = director.process().exit_status().unwrap();
                ended.is_some()
            });
            end.map(|()| ended)
        });
        debugger.join().unwrap()
    });
    let status = status.unwrap_or_else(|error| panic!("{error}: {}", director.log())).unwrap();
    assert_eq!(status.code(), Some(1), "{status}: {}", director.log());
    director.log().lines().last().unwrap_or_default().to_owned()
}

#[test]
fn the_worker_has_one_core_to_run_on() {
    let lab = clean_lab();
    let director = start(&lab, &config(&lab));
    let process = director.status().unwrap()["pid"].as_u64().unwrap();
    let worker = thread_named(&director, "adit-worker");
    let status = fs::read_to_string(format!("/proc/{process}/task/{worker}/status")).unwrap();
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

#[test]
fn a_worker_that_is_stuck_takes_the_daemon_down() {
    let lab = clean_lab();
    let director = start(&lab, &config(&lab));
    Caller::new(&lab.client, vip(SERVE_PORT)).whoami().unwrap();
    let last = end_by_a_stuck(&director, thread_named(&director, "adit-worker"));
    assert!(last.contains("it is stuck since"), "the last line does not say what happened: {last}");
}
