//! The file that says what was found.
//!
//! It lies in /run, which a reboot empties, as a reboot takes away everything that the file tells of.
//! Where /run outlives the kernel's state (a container that is started again), the boot's and the network
//! namespace's identities tell that it is of no use any more.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::HostError;
use crate::memory::Memory;

const DIRECTORY: &str = "/run/adit-realserver";

#[derive(Serialize, Deserialize)]
struct Stored {
    /// `/proc/sys/kernel/random/boot_id`.
    boot: String,
    found: Memory,
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> HostError + '_ {
    |source| HostError::File { path: path.display().to_string(), source }
}

fn boot() -> Result<String, HostError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(fs::read_to_string(path).map_err(failed(path))?.trim().to_owned())
}

/// Each network namespace has a file of its own.
fn path() -> Result<PathBuf, HostError> {
    let namespace = Path::new("/proc/self/ns/net");
    let inode = fs::metadata(namespace).map_err(failed(namespace))?.ino();
    Ok(Path::new(DIRECTORY).join(format!("found-{inode}.json")))
}

fn make_directory() -> Result<(), HostError> {
    let directory = Path::new(DIRECTORY);
    DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(failed(directory))
}

/// The file that a run locks.
pub(super) fn lock_file() -> Result<File, HostError> {
    make_directory()?;
    let path = Path::new(DIRECTORY).join("lock");
    let mut options = File::options();
    options.create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed(&path))
}

/// What was found; nothing, where nothing was changed since the boot.
pub(super) fn read() -> Result<Memory, HostError> {
    let path = path()?;
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Memory::default()),
        Err(error) => return Err(failed(&path)(error)),
    };
    let stored: Stored = serde_json::from_str(&text).map_err(|error| HostError::Memory {
        path: path.display().to_string(),
        reason: error.to_string(),
    })?;
    Ok(if stored.boot == boot()? { stored.found } else { Memory::default() })
}

/// Replaces what is written by `memory`, wholly or not at all.
pub(super) fn write(memory: &Memory) -> Result<(), HostError> {
    let path = path()?;
    if memory.is_empty() {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(&path)(error)),
            Ok(()) | Err(_) => Ok(()),
        };
    }
    make_directory()?;
    let stored = Stored { boot: boot()?, found: memory.clone() };
    let text =
        serde_json::to_string_pretty(&stored).expect("names, numbers and addresses serialise");
    let new = path.with_extension("new");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(DIRECTORY)?.sync_all()
    };
    write().map_err(failed(&path))
}
