//! The project's own binaries, and how to run them on a machine with another C library.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, LabError, Result};
use crate::namespace::run_to_end;

/// The director, `adit`; `ADIT_BIN` overrides.
///
/// # Errors
/// When it has not been built.
pub fn adit() -> Result<PathBuf> {
    match std::env::var_os("ADIT_BIN") {
        Some(path) => Ok(PathBuf::from(path)),
        None => built("adit"),
    }
}

/// The lab's own program inside machines.
///
/// # Errors
/// When it has not been built.
pub fn lab_guest() -> Result<PathBuf> {
    built("adit-lab-guest")
}

/// The preparation of real servers.
///
/// # Errors
/// When it has not been built.
pub fn realserver() -> Result<PathBuf> {
    built("adit-realserver")
}

/// Binaries lie beside the running program, or one above when that is a test.
fn built(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().context(|| "find the running program".to_owned())?;
    this.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            let advice = format!("not built beside {}: run `make build` first", this.display());
            LabError::failed(format!("find the binary {name}"), advice)
        })
}

/// Words that run a binary of this computer inside a machine, where this computer's root is
/// `/host`: by its own loader and libraries, since the machine's C library may be older.
///
/// # Errors
/// When `ldd` does not understand the binary.
pub fn through_host_root(binary: &Path) -> Result<Vec<String>> {
    let listing = run_to_end(Command::new("ldd").arg(binary))?;
    let mut loader = None;
    let mut library_dirs: Vec<String> = Vec::new();
    for line in listing.lines().map(str::trim) {
        // `libc.so.6 => /lib/…/libc.so.6 (0x…)`, or the loader's path alone.
        let path = line.split(" => ").last().unwrap_or(line).split(" (").next().unwrap_or(line);
        if !path.starts_with('/') {
            continue;
        }
        if !line.contains("=>") {
            loader = Some(format!("/host{path}"));
        } else if let Some(dir) = Path::new(path).parent() {
            let dir = format!("/host{}", dir.display());
            if !library_dirs.contains(&dir) {
                library_dirs.push(dir);
            }
        }
    }
    let loader = loader.ok_or_else(|| {
        LabError::failed(format!("find the loader of {}", binary.display()), listing)
    })?;
    let binary = format!("/host{}", binary.display());
    Ok(vec![loader, "--library-path".to_owned(), library_dirs.join(":"), binary])
}
