//! Memory and descriptors of the director: what a process has after it has warmed up is all it gets.

use std::time::Duration;
use std::{fmt, fs};

use serde::Serialize;

/// What a process may take above its warm figure, in KiB: the allocator's own ups and downs, and
/// answers that are being made when it is looked at. In some minutes it was 120 to 340.
pub(super) const MORE_KIB: u64 = 2 * 1024;

/// Descriptors above the warm figure: conversations on the admin socket at the moment of a look, and
/// sockets of real servers that come and go.
pub(super) const MORE_DESCRIPTORS: u64 = 16;

/// Longest time that a process has to warm up.
const WARM: Duration = Duration::from_secs(30);

/// What a process holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Memory of its own, in KiB. The flow table, a file that is all in memory from the start, is
    /// not in it.
    pub anonymous_kib: u64,
    /// All of its memory, in KiB.
    pub resident_kib: u64,
    /// Open ones.
    pub descriptors: u64,
}

impl Usage {
    /// Of a process; `None` when it is gone.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
        Self::parse(&status, descriptors as u64)
    }

    fn parse(status: &str, descriptors: u64) -> Option<Self> {
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
        };
        Some(Self { anonymous_kib: kib("RssAnon")?, resident_kib: kib("VmRSS")?, descriptors })
    }

    fn most(self, other: Self) -> Self {
        Self {
            anonymous_kib: self.anonymous_kib.max(other.anonymous_kib),
            resident_kib: self.resident_kib.max(other.resident_kib),
            descriptors: self.descriptors.max(other.descriptors),
        }
    }
}

/// One process.
#[derive(Clone, Copy, Debug)]
struct Life {
    pid: u32,
    since: Duration,
    /// The most until it was warm.
    warm: Usage,
    /// The most since.
    most: Usage,
}

/// All processes of the director.
#[derive(Debug)]
pub(super) struct Resources {
    /// How long a process takes to warm up.
    warm_up: Duration,
    lives: Vec<Life>,
}

/// The figures of a soak: of the process that grew most after it was warm.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Grown {
    /// Processes there were.
    processes: usize,
    /// What it had when it was warm.
    warm: Usage,
    /// The most it had later.
    most: Usage,
}

impl fmt::Display for Grown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} KiB of its own when it was warm, {} at most; {} in all; descriptors {} and {} ({} processes)",
            self.warm.anonymous_kib,
            self.most.anonymous_kib,
            self.most.resident_kib,
            self.warm.descriptors,
            self.most.descriptors,
            self.processes
        )
    }
}

impl Resources {
    /// For a load that lasts so long.
    pub(super) fn new(time: Duration) -> Self {
        let warm_up = (time / 10).clamp(Duration::from_secs(3), WARM);
        Self { warm_up, lives: Vec::new() }
    }

    /// Takes in what a process holds at a time of the load.
    pub(super) fn take_in(&mut self, pid: u32, at: Duration, usage: Usage) {
        match self.lives.last_mut() {
            Some(life) if life.pid == pid => {
                if at < life.since + self.warm_up {
                    life.warm = life.warm.most(usage);
                }
                life.most = life.most.most(usage);
            }
            _ => self.lives.push(Life { pid, since: at, warm: usage, most: usage }),
        }
    }

    /// What is wrong.
    pub(super) fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        for Life { pid, warm, most, .. } in &self.lives {
            if most.anonymous_kib > warm.anonymous_kib + MORE_KIB {
                found.push(format!(
                    "process {pid} grew from {} to {} KiB, by more than {MORE_KIB}",
                    warm.anonymous_kib, most.anonymous_kib
                ));
            }
            if most.descriptors > warm.descriptors + MORE_DESCRIPTORS {
                found.push(format!(
                    "process {pid} went from {} to {} descriptors, by more than {MORE_DESCRIPTORS}",
                    warm.descriptors, most.descriptors
                ));
            }
        }
        found
    }

    pub(super) fn grown(&self) -> Grown {
        let by = |life: &&Life| life.most.anonymous_kib - life.warm.anonymous_kib;
        let most = self.lives.iter().max_by_key(by);
        most.map_or(Grown::default(), |life| Grown {
            processes: self.lives.len(),
            warm: life.warm,
            most: life.most,
        })
    }

    pub(super) fn line(&self) -> String {
        let Some(life) = self.lives.last() else { return "no process seen yet".to_owned() };
        format!(
            "memory {} KiB of its own ({} warm), {} in all, {} descriptors",
            life.most.anonymous_kib,
            life.warm.anonymous_kib,
            life.most.resident_kib,
            life.most.descriptors
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(anonymous_kib: u64, descriptors: u64) -> Usage {
        Usage { anonymous_kib, resident_kib: anonymous_kib + 1000, descriptors }
    }

    fn seen(looks: &[(u32, u64, u64, u64)]) -> Resources {
        let mut resources = Resources::new(Duration::from_secs(100));
        for &(pid, at, kib, descriptors) in looks {
            resources.take_in(pid, Duration::from_secs(at), usage(kib, descriptors));
        }
        resources
    }

    #[test]
    fn the_kernels_figures_are_read() {
        let status = "Name:\tadit\nVmRSS:\t   20480 kB\nRssAnon:\t    9000 kB\n";
        let parsed = Usage::parse(status, 12).unwrap();
        assert_eq!((parsed.resident_kib, parsed.anonymous_kib), (20_480, 9000));
        assert_eq!(Usage::parse("VmRSS:\t 1 kB\n", 1), None);
        let own = Usage::of(std::process::id()).unwrap();
        assert!(own.anonymous_kib > 100 && own.descriptors > 2, "{own:?}");
    }

    #[test]
    fn warming_up_is_not_growing() {
        let resources =
            seen(&[(1, 0, 1000, 10), (1, 9, 50_000, 40), (1, 60, 50_000 + MORE_KIB, 56)]);
        assert_eq!(resources.violations(), Vec::<String>::new());
        // Each process has a time of its own for it.
        let resources = seen(&[(1, 0, 1000, 10), (2, 50, 1000, 10), (2, 55, 90_000, 99)]);
        assert_eq!(resources.violations(), Vec::<String>::new());
        assert_eq!(resources.grown().processes, 2);
    }

    #[test]
    fn growing_is_seen_in_whichever_process_it_was() {
        let resources = seen(&[
            (1, 0, 1000, 10),
            (1, 20, 1001 + MORE_KIB, 10),
            (2, 40, 1000, 10),
            (2, 60, 1000, 27),
        ]);
        let found = resources.violations();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("process 1 grew from 1000 to 3049 KiB"), "{found:?}");
        assert!(found[1].contains("process 2 went from 10 to 27 descriptors"), "{found:?}");
        assert_eq!(resources.grown().most.anonymous_kib, 1001 + MORE_KIB);
    }
}
