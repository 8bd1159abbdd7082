//! `adit run` as it would be started, on a core of its own.

use std::convert::Infallible;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use nix::sys::{prctl::set_pdeathsig, signal::Signal};

use crate::DIRECTOR_CORE;
use crate::rig::{PORT, REAL, TAP_NAME, VIP};

/// A director that runs. Killed when dropped.
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts it in the namespace of the calling thread.
    pub fn start() -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--director").stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self { child: command.spawn()? })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended by itself, or is killed here; either way it is waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Becomes `adit run`.
pub fn become_it() -> Result<Infallible> {
    // It would run on for ever if the bench were killed.
    set_pdeathsig(Signal::SIGKILL)?;
    adit::io::pin_current_thread(DIRECTOR_CORE)?;
    let directory = directory();
    // A flow table that an earlier run left would be adopted; each begins alike.
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)?;
    let path = directory.join("adit.toml");
    fs::write(&path, configuration(&directory))?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    command.arg("run").arg("--config").arg(&path).env("ADIT_LOG", "warn");
    Err(command.exec()).context("adit run")
}

fn directory() -> PathBuf {
    std::env::temp_dir().join("adit-bench-latency")
}

fn configuration(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        r#"[director]
tap = "{TAP_NAME}"
interface = "in"
max_connections = 100_000
state_dir = "{directory}"
socket = "{directory}/adit.sock"

[[service]]
name = "bench"
vip = "{VIP}"
port = {PORT}
protocol = "udp"
scheduler = "maglev"

[[service.real]]
address = "{REAL}"
"#
    )
}
