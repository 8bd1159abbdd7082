//! The client: an ordinary UDP socket, one question at a time.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use adit::io::clock::boottime_ns;
use anyhow::{Context, Result, ensure};

use crate::rig::{PORT, Rig};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(200);

/// Time for the director to start and to find its way.
const START_NS: u64 = 10_000_000_000;

pub struct Client {
    socket: UdpSocket,
    to: Ipv4Addr,
}

impl Client {
    /// A client of that address.
    pub fn new(rig: &Rig, to: Ipv4Addr) -> Result<Self> {
        let socket = rig.in_client(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect((to, PORT))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        })?;
        Ok(Self { socket, to })
    }

    /// Asks until there is an answer.
    pub fn until_answered(&self) -> Result<()> {
        let deadline = boottime_ns() + START_NS;
        while self.round_trip(u64::MAX)?.is_none() {
            ensure!(boottime_ns() < deadline, "no answer from {} in ten seconds", self.to);
        }
        Ok(())
    }

    /// Times of so many round trips in nanoseconds, one begun every `pause`.
    pub fn round_trips(&self, count: usize, pause: Duration) -> Result<Vec<u64>> {
        let pause = u64::try_from(pause.as_nanos())?;
        let mut due = boottime_ns();
        let mut times = Vec::with_capacity(count);
        for number in 0..count as u64 {
            rest_until(due);
            let time = self.round_trip(number)?;
            times.push(time.with_context(|| format!("no answer from {}", self.to))?);
            due += pause;
        }
        Ok(times)
    }

    /// One question and its answer; `None` when there is none.
    fn round_trip(&self, number: u64) -> Result<Option<u64>> {
        let question = number.to_be_bytes();
        let mut answer = [0; 64];
        let begin = boottime_ns();
        // A refusal (there is no route yet) is no answer.
        if self.socket.send(&question).is_err() {
            return Ok(None);
        }
        loop {
            match self.socket.recv(&mut answer) {
                // Late answers to earlier questions are passed over.
                Ok(length) if answer[..length] != question => {}
                Ok(_) => return Ok(Some(boottime_ns() - begin)),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return Ok(None);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // An ICMP error from before the director was there.
                Err(_) => return Ok(None),
            }
        }
    }
}

/// Leaves the core alone until it is time.
#[expect(clippy::disallowed_methods, reason = "a rate is kept by waiting")]
fn rest_until(due: u64) {
    let now = boottime_ns();
    if let Some(left) = due.checked_sub(now) {
        std::thread::sleep(Duration::from_nanos(left));
    }
}
