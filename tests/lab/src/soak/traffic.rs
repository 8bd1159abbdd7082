//! Traffic that somebody wants: every byte is compared, and no session may break.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread::Scope;
use std::time::Duration;

use super::Shared;
use super::dice::Dice;
use crate::error::{Context, LabError, Result};
use crate::realserver::SERVE_PORT;
use crate::serve::{Caller, Pattern};
use crate::topology::{CLIENT, CLIENT6, Lab, vip, vip6};

/// Threads that hold long-lived sessions.
const HOLDERS: u64 = 4;
/// Sessions of each.
const SESSIONS: usize = 6;
/// The first port of these; below those that the kernel gives out.
const FIRST_PORT: u16 = 10_000;
/// Ports of each holder.
const PORTS: u16 = 4000;
/// A session ends after about so many exchanges, and another is opened.
const EXCHANGES: u32 = 300;
/// Threads that open sessions for one exchange.
const CALLERS: u64 = 2;
/// Most bytes that a session for one exchange moves.
const MOVED: u32 = 60_000;
/// Bytes of a datagram that goes as fragments.
const FRAGMENTED: usize = 3000;

/// Starts all of it.
pub(super) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    lab: &'scope Lab,
    shared: &'scope Shared,
    seed: u64,
) {
    let mut seeds = Dice::new(seed ^ 5);
    for number in 0..HOLDERS {
        let dice = Dice::new(seeds.seed());
        scope.spawn(move || Holder::new(lab, shared, number, dice).work());
    }
    for _ in 0..CALLERS {
        let dice = Dice::new(seeds.seed());
        scope.spawn(move || call(lab, shared, dice));
    }
    let dice = Dice::new(seeds.seed());
    scope.spawn(move || datagrams(lab, shared, dice));
}

/// A long-lived session.
struct Session {
    stream: TcpStream,
    name: String,
    pattern: Pattern,
}

impl Session {
    /// Sends some bytes and compares what comes back.
    fn exchange(&mut self, length: usize) -> Result<()> {
        let mut sent = vec![0; length];
        self.pattern.fill(&mut sent);
        let what = || format!("session {}", self.name);
        self.stream.write_all(&sent).context(what)?;
        let mut back = vec![0; length];
        self.stream.read_exact(&mut back).context(what)?;
        match back == sent {
            true => Ok(()),
            false => Err(LabError::failed(what(), "other bytes came back")),
        }
    }
}

/// Sessions of one thread, one after the other.
struct Holder<'a> {
    lab: &'a Lab,
    shared: &'a Shared,
    dice: Dice,
    first_port: u16,
    next_port: u16,
}

impl<'a> Holder<'a> {
    fn new(lab: &'a Lab, shared: &'a Shared, number: u64, dice: Dice) -> Self {
        let number = u16::try_from(number).expect("a handful");
        let first_port = FIRST_PORT + number * PORTS;
        Self { lab, shared, dice, first_port, next_port: first_port }
    }

    /// Opens a session; one that cannot be opened counts as broken.
    fn open(&mut self) -> Option<Session> {
        let port = self.next_port;
        self.next_port =
            if port + 1 == self.first_port + PORTS { self.first_port } else { port + 1 };
        let (client, to): (IpAddr, SocketAddr) = match self.dice.below(2) {
            0 => (CLIENT, vip(SERVE_PORT)),
            _ => (CLIENT6, vip6(SERVE_PORT)),
        };
        let source = SocketAddr::new(client, port);
        let stream = match Caller::new(&self.lab.client, to).from(source).echo() {
            Ok(stream) => stream,
            Err(error) => {
                self.shared.tally.broke(&format!("not opened: {error}"), self.shared.seconds());
                return None;
            }
        };
        self.shared.tally.count(|tally| &tally.long_opened, 1);
        let name = format!("{source} opened at {} s", self.shared.seconds());
        Some(Session { stream, name, pattern: Pattern::new(self.dice.seed()) })
    }

    fn work(mut self) {
        let mut sessions: Vec<Session> = Vec::new();
        while self.shared.goes_on() {
            while sessions.len() < SESSIONS && self.shared.goes_on() {
                match self.open() {
                    Some(session) => sessions.push(session),
                    None => self.shared.pace(Duration::from_secs(1)),
                }
            }
            let mut kept = Vec::new();
            for mut session in sessions {
                let length = 1 + self.dice.below(4000) as usize;
                match session.exchange(length) {
                    Ok(()) => {
                        self.shared.tally.count(|tally| &tally.echoed_bytes, length as u64);
                        if self.dice.below(EXCHANGES) > 0 {
                            kept.push(session);
                            continue;
                        }
                    }
                    Err(error) => {
                        self.shared.tally.broke(&error.to_string(), self.shared.seconds());
                    }
                }
                self.shared.tally.count(|tally| &tally.long_closed, 1);
            }
            sessions = kept;
            self.shared.pace(Duration::from_millis(20));
        }
    }
}

/// Sessions for one exchange.
fn call(lab: &Lab, shared: &Shared, mut dice: Dice) {
    while shared.goes_on() {
        let to = dice.pick(&[vip(SERVE_PORT), vip6(SERVE_PORT)]);
        let caller = Caller::new(&lab.client, to);
        let (bytes, seed) = (u64::from(dice.below(MOVED)), dice.seed());
        let exchange = match dice.below(3) {
            0 => caller.whoami().map(drop),
            1 => caller.upload(bytes, seed).map(drop),
            _ => caller.download(bytes, seed),
        };
        match exchange {
            Ok(()) => shared.tally.count(|tally| &tally.short, 1),
            Err(error) => shared.tally.broke(&error.to_string(), shared.seconds()),
        }
        shared.pace(Duration::from_millis(20 + u64::from(dice.below(60))));
    }
}

/// Datagrams, some in fragments. Nobody sends a datagram again that was lost, so losses are counted
/// and no more.
fn datagrams(lab: &Lab, shared: &Shared, mut dice: Dice) {
    while shared.goes_on() {
        let to = dice.pick(&[vip(SERVE_PORT), vip6(SERVE_PORT)]);
        let in_fragments = dice.below(4) == 0;
        let length = if in_fragments { FRAGMENTED } else { dice.below(1200) as usize };
        match Caller::new(&lab.client, to).datagram(length, dice.seed()) {
            Ok(_) => {
                shared.tally.count(|tally| &tally.datagrams, 1);
                shared.tally.count(|tally| &tally.fragmented, u64::from(in_fragments));
            }
            Err(_) => shared.tally.count(|tally| &tally.datagrams_lost, 1),
        }
        shared.pace(Duration::from_millis(30));
    }
}
