//! The whole director: `adit run`, with two services and one real server.

use std::convert::Infallible;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use adit::io::EngineKind;
use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::topology::TAP_NAME;

/// What the packets are to a director.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// UDP packets of a few flows that it knows.
    Known,
    /// TCP SYNs that each begin a connection; the table has room for all of a measurement.
    New,
    /// The same where the table is full, so that each takes the place of another.
    NewFull,
}

impl Load {
    /// Connections that the table holds.
    const fn room(self) -> u32 {
        match self {
            Self::Known => 100_000,
            Self::New => 1_000_000,
            Self::NewFull => 20_000,
        }
    }
}

/// Becomes `adit run`, pinned as the caller is.
pub(super) fn run(kind: EngineKind, load: Load) -> Result<Infallible> {
    let directory = directory();
    // A flow table that an earlier contestant left would be adopted; each begins alike.
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)?;
    let path = directory.join("adit.toml");
    fs::write(&path, configuration(kind, load, &directory))?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    command.arg("run").arg("--config").arg(&path).env("ADIT_LOG", "warn");
    Err(command.exec()).context("adit run")
}

/// Below the temporary directory: the same for all, since one runs at a time.
fn directory() -> PathBuf {
    std::env::temp_dir().join("adit-bench-path")
}

fn configuration(kind: EngineKind, load: Load, directory: &Path) -> String {
    let room = load.room();
    let directory = directory.display();
    format!(
        r#"[director]
tap = "{TAP_NAME}"
interface = "in"
max_connections = {room}
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

[[service]]
name = "bench-tcp"
vip = "198.51.100.10"
port = 5432
protocol = "tcp"
scheduler = "maglev"

[[service.real]]
address = "10.0.0.2"
"#
    )
}

/// Totals of a running director: packets that it received, and flows that it placed by its scheduler.
pub fn received_and_scheduled() -> Result<(u64, u64)> {
    let output = Command::new(env!("CARGO_BIN_EXE_adit"))
        .args(["list", "--json", "--socket"])
        .arg(directory().join("adit.sock"))
        .output()?;
    let list: Value = serde_json::from_slice(&output.stdout).context("adit list")?;
    let totals = &list["status"]["totals"];
    match (totals["received"].as_u64(), totals["scheduled"].as_u64()) {
        (Some(received), Some(scheduled)) => Ok((received, scheduled)),
        _ => bail!("no totals in what adit list says: {list}"),
    }
}
