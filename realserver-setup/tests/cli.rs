//! The command line says what is wrong with it.

use std::process::{Command, Output};

fn run(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_adit-realserver")).args(words).output().expect("it was built")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn wrong_usage_is_told_from_refusal() {
    let usage = run(&["apply", "--vip", "198.51.100.300"]);
    assert_eq!(usage.status.code(), Some(2), "{usage:?}");
    assert!(said(&usage).contains("is not an IP address"), "{usage:?}");

    // Refused before anything is looked at or done.
    for (words, reason) in [
        (&["--vip", "198.51.100.10"][..], "no director is given"),
        (
            &["--vip", "198.51.100.10", "--director", "10.0.0.5", "--path-mtu", "100"],
            "path MTU of 100 bytes",
        ),
        (
            &["--vip", "2001:db8:100::10", "--director", "10.0.0.5", "--tunnel", "ipip"],
            "leave it out",
        ),
    ] {
        for task in ["plan", "apply", "verify"] {
            let refused = run(&[&[task], words].concat());
            assert_eq!(refused.status.code(), Some(1), "{refused:?}");
            assert!(said(&refused).contains(reason), "{}", said(&refused));
        }
    }
}

#[test]
fn a_bad_file_is_refused_with_its_places() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("realserver.toml");
    std::fs::write(&path, "vips = [\"198.51.100.10\"]\ndirector = [\"10.0.0.5\"]\n").unwrap();
    let name = path.to_str().unwrap();
    let refused = run(&["plan", "--config", name]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(
        said(&refused).contains(&format!("{name}:2:1: unknown field `director`")),
        "{}",
        said(&refused)
    );

    let missing = run(&["plan", "--config", "/nonexistent/realserver.toml"]);
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    assert!(said(&missing).contains("/nonexistent/realserver.toml"), "{}", said(&missing));
}

#[test]
fn files_for_the_system_are_written_where_they_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let etc = directory.path().to_str().unwrap();
    let target = ["--vip", "198.51.100.10", "--director", "10.0.0.5"];
    let written = run(&[&["networkd", "--json"], &target[..], &[etc]].concat());
    assert_eq!(written.status.code(), Some(0), "{written:?}");
    let listed: serde_json::Value = serde_json::from_slice(&written.stdout).unwrap();
    let files = listed["files"].as_array().unwrap();
    assert_eq!(files.len(), 4, "{listed}");
    for file in files {
        let text = std::fs::read_to_string(file.as_str().unwrap()).unwrap();
        assert!(text.starts_with("# Written by adit-realserver"), "{text}");
    }
}
