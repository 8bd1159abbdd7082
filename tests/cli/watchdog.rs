//! What a service manager hears of a director that lives, and of one whose worker does not.

use crate::THREE;
use crate::lab::lab;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// The thread of a director's only worker.
fn worker_of(director: u32) -> Pid {
    let threads = std::fs::read_dir(format!("/proc/{director}/task")).unwrap();
    let worker = threads.map(|thread| thread.unwrap()).find(|thread| {
        let name = std::fs::read_to_string(thread.path().join("comm")).unwrap();
        name.starts_with("adit-worker")
    });
    let number = worker.expect("a worker").file_name();
    Pid::from_raw(number.to_str().unwrap().parse().unwrap())
}

/// The next words to the service manager; `None` where nothing is said for a moment.
fn hear(socket: &UnixDatagram) -> Option<String> {
    let mut buffer = [0; 256];
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => return Some(String::from_utf8_lossy(&buffer[..length]).into_owned()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_service_manager_hears_of_life_only_while_the_worker_lives() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    let path = lab.file("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    // Half of this is once a tick and a bit.
    lab.start_with(&[("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "400000")]);
    let is_life = |words: Option<String>| words.is_some_and(|words| words.contains("WATCHDOG=1"));
    // Not yet when it starts.
    let mut first = None;
    crate::eventually("the first word", || {
        first = hear(&socket);
        first.is_some().then_some(())
    });
    assert!(first.is_some_and(|words| words.contains("READY=1")));
    for _ in 0..5 {
        crate::eventually("a word of life", || is_life(hear(&socket)).then_some(()));
    }

    // A thread alone can only be stopped by a debugger.
    let worker = worker_of(lab.id());
    ptrace::seize(worker, Options::empty()).unwrap();
    ptrace::interrupt(worker).unwrap();
    let mut lives = 0;
    let code = crate::eventually("the director's end", || {
        lives += u32::from(is_life(hear(&socket)));
        // A thread that is being debugged ends when its debugger has heard of it.
        let _ = waitpid(worker, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
        lab.ended()
    });
    assert_eq!(code, Some(1), "{}", lab.log());
    // The first second of five: five words, with what was under way.
    assert!(lives <= 8, "{lives} words of life from a director whose worker is stuck");
}
