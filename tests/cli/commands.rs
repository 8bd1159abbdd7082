//! What single commands print.

use crate::lab::{ADIT, eventually, lab};
use crate::{THREE, real};
use std::process::Command;

#[test]
fn the_version_is_told_whatever_the_configuration_says() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("adit.toml");
    std::fs::write(&file, "colour = 1\n").unwrap();
    let run = |words: &[&str]| {
        let output = Command::new(ADIT).arg("--config").arg(&file).args(words).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        said
    };
    let said = run(&["version"]);
    assert!(said.starts_with(&format!("adit {}\n", env!("CARGO_PKG_VERSION"))), "{said}");
    assert!(said.contains("adit.toml"), "{said}");
    let json: serde_json::Value = serde_json::from_str(&run(&["version", "--json"])).unwrap();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert!(json["config_problem"].as_str().unwrap().contains("adit.toml"), "{json}");
}

#[test]
fn connections_in_json_are_all_there_are() {
    let Some(mut lab) = lab() else { return };
    lab.configure(&THREE.replace(&real("10.0.0.3"), "").replace(&real("10.0.0.4"), ""));
    lab.start();
    for port in 40_000..41_100 {
        lab.datagram(&format!("198.51.100.1:{port}"), "192.0.2.10:7");
    }
    eventually("every datagram has its connection", || {
        let status = lab.json("list")["status"].clone();
        (status["active"].as_u64()? + status["inactive"].as_u64()? == 1100).then_some(())
    });
    let count = |words: &str| lab.json(words).as_array().unwrap().len();
    assert_eq!(count("connections"), 1100);
    assert_eq!(count("connections --limit 7"), 7);
    let shown = lab.ok("connections");
    assert!(shown.contains("… the first 1000"), "{shown}");
}
