//! The whole director: `adit run`, with one service and one real server.

use std::convert::Infallible;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use adit::io::EngineKind;
use anyhow::{Context, Result};

use crate::topology::TAP_NAME;

/// Becomes `adit run`, pinned as the caller is.
pub(super) fn run(kind: EngineKind) -> Result<Infallible> {
    let directory = directory();
    // A flow table that an earlier contestant left would be adopted; each begins alike.
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)?;
    let path = directory.join("adit.toml");
    fs::write(&path, configuration(kind, &directory))?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    command.arg("run").arg("--config").arg(&path).env("ADIT_LOG", "warn");
    Err(command.exec()).context("adit run")
}

/// Below the temporary directory: the same for all, since one runs at a time.
fn directory() -> PathBuf {
    std::env::temp_dir().join("adit-bench-path")
}

fn configuration(kind: EngineKind, directory: &Path) -> String {
    let directory = directory.display();
    format!(
        r#"[director]
tap = "{TAP_NAME}"
interface = "in"
max_connections = 100_000
io = "{kind}"
state_dir = "{directory}"
socket = "{directory}/adit.sock"

[[service]]
name = "bench"
vip = "198.51.100.10"
port = 5432
protocol = "udp"
scheduler = "maglev"

[[service.real]]
address = "10.0.0.2"
"#
    )
}
