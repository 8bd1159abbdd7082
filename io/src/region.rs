//! Files in the state directory that are mapped and outlive the process: the flow region.
//!
//! A store into the mapping is a store into the page cache, which belongs to the kernel: `kill -9`
//! loses none of it. One process at a time: the directory is locked as long as it is open.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use memmap2::{Advice, MmapMut};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, posix_fallocate};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use thiserror::Error;

use super::errno::errno_of;

/// Why there is no region.
#[derive(Debug, Error)]
pub enum RegionError {
    /// Another process uses the directory.
    #[error(
        "{} is in use by another director (process {holder}); stop it, or set another state_dir",
        directory.display()
    )]
    InUse {
        /// The directory.
        directory: PathBuf,
        /// What the other one wrote into the lock file: its process id.
        holder: String,
    },
    /// The file system is full.
    #[error(
        "{}: no room for {} MiB: enlarge the file system, set another state_dir, or lower max_connections",
        path.display(), length.div_ceil(1 << 20)
    )]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
    },
    /// No memory for its pages.
    #[error(
        "{}: no memory for {} MiB: give the service more memory, or lower max_connections",
        path.display(), length.div_ceil(1 << 20)
    )]
    NoMemory {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
    },
    /// Another refusal.
    #[error("{}: {action}: {errno}", path.display())]
    Refused {
        /// File or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
}

fn refused<'a>(
    path: &'a Path,
    action: &'static str,
) -> impl FnOnce(std::io::Error) -> RegionError + 'a {
    move |error| RegionError::Refused { path: path.into(), action, errno: errno_of(&error) }
}

/// The state directory, locked for this process until it is dropped (or the process is gone,
/// however it went).
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Takes the lock, or says who has it. One that was killed a moment ago may still have it: the kernel
/// closes files after the process is gone where a ring or a child refers to them. It is waited for.
fn take_lock(
    mut lock: File,
    directory: &Path,
    lock_path: &Path,
) -> Result<Flock<File>, RegionError> {
    let mut tries = 0;
    loop {
        match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((mut held, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                let told = held.rewind().and_then(|()| held.read_to_string(&mut holder)).is_ok();
                let pid = holder.trim().parse().ok().filter(|_| told).map(Pid::from_raw);
                let is_gone = pid.is_some_and(|pid| kill(pid, None) == Err(Errno::ESRCH));
                if !is_gone || tries == LOCK_TRIES {
                    let holder = pid.map_or_else(|| "unknown".into(), |pid| pid.to_string());
                    return Err(RegionError::InUse { directory: directory.into(), holder });
                }
                (lock, tries) = (held, tries + 1);
                #[expect(
                    clippy::disallowed_methods,
                    reason = "nobody else is served before the start"
                )]
                std::thread::sleep(LOCK_PAUSE);
            }
            Err((_, errno)) => {
                return Err(RegionError::Refused { path: lock_path.into(), action: "lock", errno });
            }
        }
    }
}

/// How often, and how long apart, the lock of a process that is gone is asked for: three seconds, as
/// for its TAP.
const LOCK_TRIES: u32 = 600;
/// See [`LOCK_TRIES`].
const LOCK_PAUSE: Duration = Duration::from_millis(5);

impl StateDirectory {
    /// Locks a directory, which is made if it is not there.
    ///
    /// # Errors
    /// [`RegionError::InUse`] names the process that has it.
    pub fn lock(path: &Path) -> Result<Self, RegionError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o755).create(path).map_err(refused(path, "create"))?;
        let lock_path = path.join("lock");
        // Not truncated: until the lock is held, the content is the other process's.
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(refused(&lock_path, "open"))?;
        let mut lock = take_lock(lock, path, &lock_path)?;
        lock.rewind()
            .and_then(|()| lock.set_len(0))
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(refused(&lock_path, "write"))?;
        Ok(Self { path: path.into(), _lock: lock })
    }

    /// Maps the file `name` as it is; `None` when there is none, or it is empty.
    ///
    /// # Errors
    /// No permission, no memory.
    pub fn open(&self, name: &str) -> Result<Option<Region>, RegionError> {
        let path = self.path.join(name);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(refused(&path, "open")(error)),
        };
        let length = file.metadata().map_err(refused(&path, "look at"))?.len();
        if length == 0 {
            return Ok(None);
        }
        Region::map(&file, path.clone(), path, length).map(Some)
    }

    /// Makes a zeroed file of `length` bytes, all of them allocated and in memory. It takes the
    /// place of the file `name` when it is [published](Region::publish), and not before: until then
    /// the old one is untouched.
    ///
    /// # Errors
    /// [`RegionError::NoSpace`], [`RegionError::NoMemory`].
    pub fn create(&self, name: &str, length: u64) -> Result<Region, RegionError> {
        let temporary = self.path.join(format!("{name}.new"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(refused(&temporary, "create"))?;
        let allocated = i64::try_from(length)
            .map_err(|_| Errno::EFBIG)
            .and_then(|bytes| posix_fallocate(&file, 0, bytes));
        let made = match allocated {
            Ok(()) => Region::map(&file, temporary.clone(), self.path.join(name), length),
            Err(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => {
                Err(RegionError::NoSpace { path: temporary.clone(), length })
            }
            Err(errno) => Err(RegionError::Refused {
                path: temporary.clone(),
                action: "allocate its blocks",
                errno,
            }),
        };
        if made.is_err() {
            // The first error is the one to tell; what is left is overwritten by the next attempt.
            let _ = std::fs::remove_file(&temporary);
        }
        made
    }
}

/// A mapped file. Its bytes begin on a page border.
#[derive(Debug)]
pub struct Region {
    map: MmapMut,
    placement: Placement,
}

/// Where a region's file is, and where it belongs.
#[derive(Debug)]
pub struct Placement {
    path: PathBuf,
    destination: PathBuf,
}

impl Placement {
    /// Puts the file in its place, atomically. For one that was [opened](StateDirectory::open) this
    /// does nothing.
    ///
    /// # Errors
    /// The file system refused the renaming.
    pub fn publish(&mut self) -> Result<(), RegionError> {
        if self.path != self.destination {
            std::fs::rename(&self.path, &self.destination)
                .map_err(refused(&self.destination, "put in place"))?;
            self.path.clone_from(&self.destination);
        }
        Ok(())
    }
}

/// One that was never put in place is of no use to anybody, and would keep its memory.
impl Drop for Placement {
    fn drop(&mut self) {
        if self.path != self.destination {
            // What cannot be removed is overwritten by the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Region {
    fn map(
        file: &File,
        path: PathBuf,
        destination: PathBuf,
        length: u64,
    ) -> Result<Self, RegionError> {
        // SAFETY: a mapped file may be changed by others. This one is in a directory that is locked
        // by this process, with mode 0600; an administrator who truncates it by hand gets SIGBUS,
        // and one who writes into it gets entries that adoption validates.
        let map = unsafe { MmapMut::map_mut(file) }.map_err(refused(&path, "map"))?;
        // Each page is faulted in writable now, so that no packet pays for it. Linux 5.14; before
        // it, and where it is refused for another reason than memory, pages come on first use.
        if let Err(error) = map.advise(Advice::PopulateWrite)
            && matches!(errno_of(&error), Errno::ENOMEM | Errno::EFAULT)
        {
            return Err(RegionError::NoMemory { path, length });
        }
        Ok(Self { map, placement: Placement { path, destination } })
    }

    /// Puts the file in its place, see [`Placement::publish`].
    ///
    /// # Errors
    /// The file system refused the renaming.
    pub fn publish(&mut self) -> Result<(), RegionError> {
        self.placement.publish()
    }

    /// The bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }

    /// The bytes, mapped until the process ends: workers and control share views of them. A new
    /// file can be put in place when they are complete.
    pub fn leak(self) -> (&'static mut [u8], Placement) {
        (&mut *Box::leak(Box::new(self.map)), self.placement)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    #[test]
    fn a_new_region_takes_its_place_when_published() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::lock(directory.path()).unwrap();
        assert!(state.open("flows").unwrap().is_none());
        let mut region = state.create("flows", 10_000).unwrap();
        assert_eq!(region.bytes_mut().len(), 10_000);
        assert!(region.bytes_mut().iter().all(|&byte| byte == 0));
        region.bytes_mut()[9_999] = 7;
        assert!(state.open("flows").unwrap().is_none(), "not published yet");
        region.publish().unwrap();
        assert_eq!(state.open("flows").unwrap().unwrap().bytes_mut()[9_999], 7);

        let mut larger = state.create("flows", 20_000).unwrap();
        assert_eq!(state.open("flows").unwrap().unwrap().bytes_mut().len(), 10_000);
        larger.publish().unwrap();
        assert_eq!(state.open("flows").unwrap().unwrap().bytes_mut().len(), 20_000);
        drop(state.create("flows", 30_000).unwrap());
        assert!(!directory.path().join("flows.new").exists(), "it was given up");
        assert_eq!(state.open("flows").unwrap().unwrap().bytes_mut().len(), 20_000);
        region.bytes_mut()[0] = 1; // the old one stays mapped
    }

    #[test]
    fn a_directory_has_one_director() {
        let directory = tempfile::tempdir().unwrap();
        let first = StateDirectory::lock(directory.path()).unwrap();
        let error = StateDirectory::lock(directory.path()).unwrap_err();
        let RegionError::InUse { holder, .. } = &error else { panic!("{error}") };
        assert_eq!(*holder, std::process::id().to_string());
        drop(first);
        StateDirectory::lock(directory.path()).unwrap();
    }

    #[test]
    fn no_space_is_said_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::lock(directory.path()).unwrap();
        let error = state.create("flows", 1 << 50).unwrap_err();
        assert!(matches!(error, RegionError::NoSpace { .. }), "{error}");
        assert!(!directory.path().join("flows.new").exists());
    }

    const CHILD_DIRECTORY: &str = "ADIT_TEST_REGION_DIRECTORY";

    /// The child of the test below; by itself it is not run.
    #[test]
    #[ignore = "run by survives_a_killed_process as another process"]
    fn writes_without_end() {
        let directory = std::env::var(CHILD_DIRECTORY).unwrap();
        let state = StateDirectory::lock(Path::new(&directory)).unwrap();
        let mut region = state.create("flows", 4096).unwrap();
        region.publish().unwrap();
        for count in 1u64.. {
            region.bytes_mut()[..8].copy_from_slice(&count.to_ne_bytes());
            if count == 1000 {
                println!("a thousand");
            }
        }
    }

    #[test]
    fn survives_a_killed_process() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "region::tests::writes_without_end"])
            .args(["--ignored", "--nocapture"])
            .env(CHILD_DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains("a thousand")));
        assert!(matches!(
            StateDirectory::lock(directory.path()),
            Err(RegionError::InUse { holder, .. }) if holder == child.id().to_string()
        ));
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        let state = StateDirectory::lock(directory.path()).unwrap();
        let mut region = state.open("flows").unwrap().unwrap();
        let count = u64::from_ne_bytes(region.bytes_mut()[..8].try_into().unwrap());
        assert!(count >= 1000, "{count}");
    }
}
