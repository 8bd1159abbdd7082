//! Runs other programs.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::HostError;

/// Runs a program to its end and returns what it printed.
pub(super) fn run(program: &str, words: &[&str], input: Option<&str>) -> Result<String, HostError> {
    let shown = || format!("{program} {}", words.join(" "));
    let refused = |reason: String| HostError::Refused { command: shown(), reason };
    let mut command = Command::new(program);
    // What is compared with known texts must not be translated.
    command.args(words).env("LC_ALL", "C").stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().map_err(|error| refused(error.to_string()))?;
    if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
        // A program that refuses early closes the pipe, and says why below.
        let _ = pipe.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| refused(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    if said.contains("Operation not permitted") {
        return Err(HostError::Rights(format!("{}: {said}", shown())));
    }
    Err(refused(if said.is_empty() { output.status.to_string() } else { said }))
}

/// Runs `ip` with these words.
pub(super) fn ip(words: &str) -> Result<String, HostError> {
    let words: Vec<_> = words.split(' ').collect();
    run("ip", &words, None)
}

/// What `ip` lists, as JSON.
pub(super) fn list(words: &str) -> Result<Vec<Value>, HostError> {
    let text = ip(words)?;
    // `ip -j` prints nothing at all for an empty list.
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let refused = |error: serde_json::Error| HostError::Refused {
        command: format!("ip {words}"),
        reason: error.to_string(),
    };
    serde_json::from_str(&text).map_err(refused)
}
