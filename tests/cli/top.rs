//! `adit top` under a pseudo terminal, by what an emulator of one shows.

use crate::THREE;
use crate::lab::{ADIT, eventually, lab};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// `adit top` in a terminal of 80 columns and 24 lines.
struct Top {
    child: Child,
    keys: File,
    slave: OwnedFd,
    before: Termios,
    shown: Arc<Mutex<Shown>>,
}

/// What was written, and what a terminal makes of it.
struct Shown {
    bytes: Vec<u8>,
    terminal: vt100::Parser,
}

impl Top {
    fn start(socket: &Path, words: &[&str], environment: &[(&str, &str)]) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command = Command::new(ADIT);
        command.args(["--config", "/nonexistent", "--socket"]).arg(socket).arg("top").args(words);
        command.env("TERM", "xterm").env_remove("NO_COLOR").envs(environment.iter().copied());
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let [rows, columns] = [24, 80].map(|size| NonZeroU16::new(size).unwrap());
        let terminal = vt100::Parser::new(rows, columns, 0);
        let shown = Arc::new(Mutex::new(Shown { bytes: Vec::new(), terminal }));
        let (mut master, writes) = (File::from(pty.master.try_clone().unwrap()), shown.clone());
        // Ends with the terminal, when both the program and this test have let it go.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = master.read(&mut buffer) {
                let mut shown = writes.lock().unwrap();
                shown.bytes.extend_from_slice(&buffer[..length]);
                shown.terminal.process(&buffer[..length]);
            }
        });
        Top { child, keys: File::from(pty.master), slave: pty.slave, before, shown }
    }

    fn screen(&self) -> String {
        self.shown.lock().unwrap().terminal.screen().contents()
    }

    /// Waits until the screen is as it should be.
    fn shows(&self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        let mut seen = String::new();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(what, || {
                seen = self.screen();
                condition(&seen).then_some(())
            });
        }));
        assert!(result.is_ok(), "{what}:\n{seen}");
        seen
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits for its end; it must have succeeded, and the terminal be as it was.
    fn ended(mut self) -> Vec<u8> {
        let status = eventually("top ends", || self.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{}", self.screen());
        assert_eq!(tcgetattr(&self.slave).unwrap(), self.before, "the terminal's modes");
        eventually("its last bytes", || {
            let shown = self.shown.lock().unwrap();
            let screen = shown.terminal.screen();
            (!screen.alternate_screen() && !screen.hide_cursor()).then_some(())
        });
        self.shown.lock().unwrap().bytes.clone()
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        // Ended already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn top_draws_obeys_keys_and_outlives_the_director() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    let mut top = Top::start(&lab.file("adit.sock"), &[], &[]);
    top.shows("nobody answers", |s| s.contains("no director listens"));
    lab.start();
    let screen = top.shows("the service", |s| s.contains("echo UDP 192.0.2.10:7"));
    assert!(screen.contains("10.0.0.4") && screen.contains("3/3 up"), "{screen}");
    assert!(screen.starts_with("adit "), "{screen}");
    let now = tcgetattr(&top.slave).unwrap();
    assert!(!now.local_flags.intersects(LocalFlags::ECHO | LocalFlags::ICANON));
    assert!(top.shown.lock().unwrap().terminal.screen().alternate_screen());

    for port in 40_000..40_020 {
        lab.datagram(&format!("198.51.100.1:{port}"), "192.0.2.10:7");
        lab.datagram(&format!("198.51.100.1:{port}"), "192.0.2.10:8");
    }
    top.shows("20 flows", |s| s.contains("flows 20 of 4096"));
    let drops = |s: &str| s.lines().any(|l| l.contains(" no_service: ") && l.contains("     20 "));
    top.shows("the drops", drops);
    top.shows("a second in which nothing came", |s| s.contains("received 0 packet/s"));

    lab.end(Signal::SIGKILL);
    let screen = top.shows("the director is gone", |s| s.contains("NO ANSWER"));
    assert!(screen.contains("no director listens") && screen.contains("10.0.0.4"), "{screen}");
    lab.start();
    let back = |s: &str| s.contains("started anew") && !s.contains("NO ANSWER");
    let screen = top.shows("it is back", back);
    assert!(screen.contains("flows 20 of 4096"), "they were adopted: {screen}");
    top.shows("its rates", |s| s.contains("packet/s  forwarded 0  dropped"));

    top.press("?");
    top.shows("the help", |s| s.contains("adit top: keys"));
    top.press("x");
    top.press("s");
    top.shows("another order", |s| s.contains("s sort: bit/s"));
    top.press("p");
    top.shows("a pause", |s| s.contains("PAUSED"));
    top.press("q");
    let bytes = String::from_utf8_lossy(&top.ended()).into_owned();
    assert!(bytes.contains("\x1b[38;5;"), "coloured");
}

#[test]
fn top_gives_the_terminal_back_when_it_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock");
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let top = Top::start(&socket, &[], &[("NO_COLOR", "1")]);
        top.shows("nobody answers", |s| s.contains("no director listens"));
        top.signal(signal);
        let bytes = String::from_utf8_lossy(&top.ended()).into_owned();
        assert!(!bytes.contains("\x1b[38;"), "no colours with NO_COLOR: {bytes:?}");
    }
    let mut top = Top::start(&socket, &["--no-color", "--interval", "5"], &[]);
    top.shows("nobody answers", |s| s.contains("no director listens"));
    top.press("\x03");
    top.ended();
}

#[test]
fn top_says_where_it_cannot_draw() {
    let run = |words: &[&str], term: Option<&str>| {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let mut command = Command::new(ADIT);
        command.args(["--config", "/nonexistent", "top"]).args(words);
        command.env_remove("TERM").envs(term.map(|term| ("TERM", term)));
        command.stdin(Stdio::null()).stdout(Stdio::from(pty.slave));
        let output = command.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (term, said) in [(Some("dumb"), "TERM=dumb"), (None, "TERM is not set")] {
        let (code, stderr) = run(&[], term);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains(said) && stderr.contains("adit top --once"), "{stderr}");
    }
    assert_eq!(run(&["--interval", "0"], Some("xterm")).0, Some(2));
    let output = Command::new(ADIT).args(["top"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no terminal"));
}

#[test]
fn one_frame_needs_no_terminal_and_no_more_than_the_socket_that_shows() {
    let Some(mut lab) = lab() else { return };
    lab.configure(&format!("admin_group = \"daemon\"\n{THREE}"));
    lab.start();
    for port in 40_000..40_007 {
        lab.datagram(&format!("198.51.100.1:{port}"), "192.0.2.10:7");
    }
    eventually("7 connections", || (lab.connections().len() == 7).then_some(()));
    let frame = lab.adit_as("daemon", "top --once");
    let (text, error) = (
        String::from_utf8(frame.stdout).unwrap(),
        String::from_utf8_lossy(&frame.stderr).into_owned(),
    );
    assert!(frame.status.success(), "{error}");
    assert!(text.contains("flows 7 of 4096") && text.contains("\n  10.0.0.4 "), "{text}");
    assert!(text.contains("Drops: none") && !text.contains('\x1b'), "{text}");
    let numbers = lab.json("top --once");
    assert_eq!(numbers["rates"]["services"][0]["reals"][0]["packets_per_second"], 0.0);
    assert_eq!(numbers["status"]["tap"], "adit0");
    let said = lab.refused("top --json");
    assert!(said.contains("--once"), "{said}");
}
