//! One run of a lab: its unique prefix, its directory, and the certainty that all of it goes away.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Context, Result};

/// Where runs keep sockets, logs and guests' files; short, since socket paths are limited to
/// 107 bytes.
const RUNS: &str = "/tmp/adit-lab";

/// What removes a run; see the script for how it notices the end.
const CLEANUP: &str = include_str!("../guest/cleanup.sh");

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A lab run. Dropping it removes every process, namespace and file that carries its prefix;
/// when this process dies without dropping it, its reaper does the same, and if that was
/// killed too, the next run of anybody does.
#[derive(Debug)]
pub struct Run {
    prefix: String,
    dir: PathBuf,
    reaper: Child,
    /// Held while the owner lives: what tells a living run from a leftover, whatever became
    /// of the process number since.
    _owner: Flock<File>,
}

impl Run {
    /// Starts a run and removes the leftovers of dead ones.
    ///
    /// # Errors
    /// When the run's directory or its reaper cannot be made.
    pub fn new() -> Result<Self> {
        fs::create_dir_all(RUNS).context(|| format!("create {RUNS}"))?;
        let _table = lock_table()?;
        sweep()?;

        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("adl{}-{number}", std::process::id());
        let dir = Path::new(RUNS).join(&prefix);
        fs::create_dir(&dir).context(|| format!("create {}", dir.display()))?;
        let owner = try_own(&dir)?.ok_or_else(|| {
            crate::LabError::failed("own the run's directory", "somebody else holds it")
        })?;
        let reaper = reaper(&prefix, &dir, Stdio::piped())?;
        Ok(Self { prefix, dir, reaper, _owner: owner })
    }

    /// The prefix of all names of this run.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The directory of this run.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::env::var_os("ADIT_LAB_KEEP_LOGS").is_some() {
            let kept = Path::new(RUNS).join(format!("kept-{}", self.prefix));
            // Best effort, for a person who debugs: the run itself must still be removed.
            let _ = Command::new("cp").arg("-r").arg(&self.dir).arg(kept).status();
        }
        drop(self.reaper.stdin.take());
        // The reaper bounds itself; without it, the next run sweeps.
        let _ = self.reaper.wait();
    }
}

/// Removes the runs whose owner is dead.
///
/// # Errors
/// When the directory of runs cannot be read.
pub fn sweep_leftovers() -> Result<()> {
    fs::create_dir_all(RUNS).context(|| format!("create {RUNS}"))?;
    let _table = lock_table()?;
    sweep()
}

/// One at a time: a run that is being made is not yet owned and would look dead to a sweeper.
fn lock_table() -> Result<Flock<File>> {
    let path = Path::new(RUNS).join("lock");
    let file = File::create(&path).context(|| format!("open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .context(|| format!("lock {}", path.display()))
}

fn sweep() -> Result<()> {
    let entries = fs::read_dir(RUNS).context(|| format!("list {RUNS}"))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("adl") || try_own(&entry.path())?.is_none() {
            continue;
        }
        let mut child = reaper(&name, &entry.path(), Stdio::null())?;
        child.wait().context(|| format!("remove the leftover run {name}"))?;
    }
    Ok(())
}

/// Takes the ownership of a run's directory if nobody alive has it.
fn try_own(dir: &Path) -> Result<Option<Flock<File>>> {
    let path = dir.join("owner");
    let file = match File::create(&path) {
        Ok(file) => file,
        // A reaper was faster.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context(|| format!("open {}", path.display())),
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno).context(|| format!("lock {}", path.display())),
    }
}

/// Starts the clean-up script; it acts when its standard input ends. It leads a process group
/// of its own, so that an interrupt from the terminal does not reach it.
fn reaper(prefix: &str, dir: &Path, input: Stdio) -> Result<Child> {
    Command::new("sh")
        .args(["-c", CLEANUP, "adit-lab-cleanup", prefix])
        .arg(dir)
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0)
        .spawn()
        .context(|| "start the lab's reaper".to_owned())
}
