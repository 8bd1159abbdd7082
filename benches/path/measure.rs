//! One measurement: a contestant as a child process, a closed loop of packets through it.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use adit::io::{clock, interface_index};
use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollTimeout, poll};
use serde::Serialize;

use crate::bpf::{Generator, Sink};
use crate::topology::TAP_NAME;

/// Packets that arrive by one call of the generator.
const BURST: u32 = 256;
/// Packets that may be under way. Below the TAP's queue, so that nothing is lost there: an overloaded
/// TAP loses a third of its throughput to contention, and would measure that.
const WINDOW: u64 = 2048;
/// Packets that have not come out after this time are taken as lost.
const PATIENCE_NS: u64 = 20_000_000;

/// Time for a contestant to start.
const START_NS: u64 = 10_000_000_000;

/// What came out of a measurement.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figures {
    /// Wrapped packets at the sink, a second.
    pub packets_per_second: f64,
    /// Packets sent in.
    pub offered: u64,
    /// Of those, lost.
    pub lost: u64,
    /// CPU time of the director (all of its core's work but softirq), ns per packet.
    pub process_ns_per_packet: f64,
}

/// Sends for `time`, and counts.
pub fn closed_loop(
    generator: &Generator,
    sink: &Sink,
    time: Duration,
    process: u32,
) -> Result<Figures> {
    let cpu_before = cpu_time(process)?;
    let begin = clock::boottime_ns();
    let end = begin + u64::try_from(time.as_nanos())?;
    let base = sink.wrapped();
    let (mut offered, mut lost) = (0u64, 0u64);
    let (mut seen, mut seen_at) = (0, begin);
    let mut now = begin;
    while now < end {
        let out = sink.wrapped() - base;
        if out != seen {
            (seen, seen_at) = (out, now);
        }
        let under_way = offered.saturating_sub(lost + out);
        if under_way + u64::from(BURST) <= WINDOW {
            generator.send(BURST)?;
            offered += u64::from(BURST);
        } else if now - seen_at > PATIENCE_NS {
            lost += under_way;
            seen_at = now;
        } else {
            rest();
        }
        now = clock::boottime_ns();
    }
    let out = sink.wrapped() - base;
    let cpu = cpu_time(process)?.saturating_sub(cpu_before);
    if out == 0 {
        bail!("nothing came out ({offered} packets in, {} others at the sink)", sink.others());
    }
    Ok(Figures {
        packets_per_second: out as f64 * 1e9 / (now - begin) as f64,
        offered,
        lost,
        process_ns_per_packet: cpu.as_nanos() as f64 / out as f64,
    })
}

/// Leaves the core alone while the window is full, for a tenth of what the window holds: the two cores
/// may be threads of one, and a spinning generator would slow the director.
#[expect(clippy::disallowed_methods, reason = "a closed loop waits for time to pass")]
fn rest() {
    std::thread::sleep(Duration::from_micros(200));
}

/// CPU time of a process so far.
fn cpu_time(process: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // Fields 14 and 15, counted from behind the name, which may hold spaces.
    let (_, fields) = stat.rsplit_once(") ").context("an unknown /proc/pid/stat")?;
    let mut ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
    let (user, system) = (ticks.next().context("no utime")??, ticks.next().context("no stime")??);
    Ok(Duration::from_millis((user + system) * 10)) // USER_HZ is 100 on all architectures of Linux
}

/// A contestant that runs. Killed when dropped.
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts a command in the namespace of the calling thread, and waits until packets get through.
    pub fn start(mut command: Command, generator: &Generator, sink: &Sink) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let mut running = Self { child };
        let before = sink.wrapped();
        let deadline = clock::boottime_ns() + START_NS;
        while sink.wrapped() == before {
            if let Some(status) = running.child.try_wait()? {
                bail!("it did not start: {status}");
            }
            ensure!(clock::boottime_ns() < deadline, "no packet came through in ten seconds");
            // Packets before the TAP is there have no route and are dropped by the kernel.
            generator.send(1)?;
            std::thread::yield_now();
        }
        Ok(running)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended by itself, or is killed here; either way it is waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A ring is taken down by a kernel thread, and holds the TAP until then.
        let deadline = clock::boottime_ns() + START_NS;
        while interface_index(TAP_NAME).is_ok() && clock::boottime_ns() < deadline {
            let _ = poll(&mut [], PollTimeout::from(5u8));
        }
    }
}
