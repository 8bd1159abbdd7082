//! The Debian root that real servers run on: built once, kept in the user's cache, shared
//! read-only by all of them.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Context, LabError, Result};
use crate::namespace::run_to_end;

/// Version of what is in the root: raise it with every change of the two files below.
const RECIPE: u32 = 2;
const BUILD: &str = include_str!("../guest/build-root.sh");
const INIT: &str = include_str!("../guest/lab-init");

/// Path of the root, which is built if it is not in the cache yet (about a minute, and
/// about 700 MB). Who waits for that is told so on standard error.
///
/// # Errors
/// When it cannot be built; the builder's output is in the error.
pub fn debian_root() -> Result<PathBuf> {
    let cache = cache_dir()?;
    let root = cache.join(format!("root-{RECIPE}-{}", guest_kernel_release()));
    if root.exists() {
        return Ok(root);
    }
    fs::create_dir_all(&cache).context(|| format!("create {}", cache.display()))?;
    let lock_path = cache.join("lock");
    let lock = File::create(&lock_path).context(|| format!("open {}", lock_path.display()))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .context(|| format!("lock {}", lock_path.display()))?;
    if !root.exists() {
        tell(&format!(
            "building the Debian root of the real servers in {}: about a minute, once",
            cache.display()
        ));
        build(&cache, &root)?;
        tell("the Debian root is built");
    }
    Ok(root)
}

/// A minute of silence looks like a hang.
fn tell(what: &str) {
    eprintln!("adit-lab: {what}");
}

/// Builds beside the final place and renames, so that what is in the cache is complete.
fn build(cache: &Path, root: &Path) -> Result<()> {
    let partial = cache.join("root.partial");
    run_to_end(Command::new("rm").args(["-rf", "--one-file-system"]).arg(&partial))?;
    run_to_end(Command::new("sh").args(["-c", BUILD, "build-root"]).arg(&partial))?;
    let init = partial.join("sbin/lab-init");
    fs::write(&init, INIT).context(|| format!("write {}", init.display()))?;
    fs::set_permissions(&init, Permissions::from_mode(0o755))
        .context(|| format!("make {} executable", init.display()))?;
    fs::rename(&partial, root).context(|| format!("rename to {}", root.display()))
}

fn cache_dir() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => std::env::var_os("HOME")
            .map(|home| Path::new(&home).join(".cache"))
            .ok_or_else(|| LabError::failed("find the cache directory", "no HOME"))?,
    };
    Ok(base.join("adit"))
}

/// The guest kernel that is installed, part of the cache's key since its modules are in the root.
fn guest_kernel_release() -> String {
    let modules = fs::read_dir("/usr/lib/uml/modules");
    let mut names: Vec<_> = modules
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names.pop().unwrap_or_else(|| "none".to_owned())
}
