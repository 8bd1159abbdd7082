//! How many workers there are, and which core each has.

use super::config::Config;

/// The processors this process may use.
fn allowed() -> Vec<usize> {
    let Ok(allowed) = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)) else {
        return Vec::new();
    };
    (0..nix::sched::CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false)).collect()
}

/// How many processors this process may use; `None` where the kernel does not say.
#[must_use]
pub fn available() -> Option<usize> {
    Some(allowed().len()).filter(|cores| *cores > 0)
}

/// Workers that a configuration means: one for each processor this process may use, where it says
/// so by 0.
#[must_use]
pub fn workers(config: &Config) -> u16 {
    match config.director.workers {
        0 => {
            u16::try_from(allowed().len().clamp(1, super::config::MAX_WORKERS.into())).unwrap_or(1)
        }
        workers => workers,
    }
}

/// The processor of each of so many workers, from the last one down: interrupts and control tend to
/// be on the first. `None` where there is nothing to choose, or more workers than processors.
#[must_use]
pub fn of_workers(workers: u16) -> Vec<Option<usize>> {
    share_out(&allowed(), workers.into())
}

fn share_out(allowed: &[usize], workers: usize) -> Vec<Option<usize>> {
    let enough = allowed.len() > 1 && workers <= allowed.len();
    let core = |worker| allowed.iter().rev().nth(worker).copied().filter(|_| enough);
    (0..workers).map(core).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_has_a_core_of_its_own_or_none_has() {
        assert_eq!(share_out(&[0, 2, 3], 1), [Some(3)]);
        assert_eq!(share_out(&[0, 2, 3], 3), [Some(3), Some(2), Some(0)]);
        assert_eq!(share_out(&[0, 2], 3), [None; 3]);
        assert_eq!(share_out(&[4], 1), [None]);
        assert_eq!(share_out(&[], 2), [None; 2]);
    }
}
