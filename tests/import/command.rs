//! The command: where its output goes, and what it never overwrites.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const ADIT: &str = env!("CARGO_BIN_EXE_adit");
const RULES: &str = "-A -t 192.0.2.1:80 -s mh\n-a -t 192.0.2.1:80 -r 10.0.0.1:80 -i -w 5\n";

fn adit(words: &[&str]) -> Output {
    Command::new(ADIT).args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A directory with the rules in it.
fn directory() -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let rules = directory.path().join("rules");
    std::fs::write(&rules, RULES).unwrap();
    (directory, rules)
}

#[test]
fn the_configuration_goes_to_standard_output_and_the_report_to_standard_error() {
    let (_directory, rules) = directory();
    let output = adit(&["import", "ipvsadm", path(&rules)]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("\n# interface = \"eth0\""));
    assert!(text(&output.stdout).contains("vip = \"192.0.2.1\""));
    let said = text(&output.stderr);
    assert!(said.contains("rules:1: -s mh\n    changed: "), "{said}");
    assert!(said.contains("to be filled in: "), "{said}");
    assert!(!text(&output.stdout).contains("changed: "));

    // The same from standard input, with the report in it.
    let mut child = Command::new(ADIT)
        .args(["import", "ipvsadm", "-", "--interface", "eth1", "--report-in-comments"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(RULES.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let config = text(&output.stdout);
    assert!(config.contains("\ninterface = \"eth1\""), "{config}");
    assert!(config.contains("\n# standard input:1: -s mh\n#     changed: "), "{config}");
    assert_eq!(text(&output.stderr).lines().count(), 1, "the summary alone");
}

#[test]
fn what_was_written_is_taken_and_never_overwritten_unasked() {
    let (directory, rules) = directory();
    let config = directory.path().join("adit.toml");
    let words = ["import", "ipvsadm", path(&rules), "-o", path(&config), "--interface", "eth0"];
    let first = adit(&words);
    assert_eq!((first.status.code(), first.stdout.len()), (Some(0), 0));
    let written = std::fs::read_to_string(&config).unwrap();
    let checked = adit(&["--config", path(&config), "check", "--offline"]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stdout));

    std::fs::write(&config, "mine").unwrap();
    let second = adit(&words);
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("--force overwrites it"));
    assert_eq!(std::fs::read_to_string(&config).unwrap(), "mine");

    let forced = adit(&[&words[..], &["--force"]].concat());
    assert_eq!(forced.status.code(), Some(0));
    assert_eq!(std::fs::read_to_string(&config).unwrap(), written);
}

/// Of each file with every option comes what `adit check` takes.
#[test]
fn what_is_imported_is_checked() {
    let directory = tempfile::tempdir().unwrap();
    for (source, input) in super::ALL {
        let (file, config) = (directory.path().join("input"), directory.path().join("adit.toml"));
        std::fs::write(&file, input).unwrap();
        let import = ["import", source.name(), path(&file), "--interface", "eth0"];
        let output = adit(&[&import[..], &["--force", "-o", path(&config)]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let checked = adit(&["--config", path(&config), "check", "--offline"]);
        assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stdout));
    }
}

#[test]
fn json_has_all_of_it() {
    let (_directory, rules) = directory();
    let output = adit(&["import", "ipvsadm", path(&rules), "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.stderr.len(), 0);
    assert_eq!(json["services"], 1);
    assert_eq!(json["real_servers"], 1);
    assert_eq!(json["words"]["read"], 13);
    assert_eq!(json["entries"][1]["kind"], "changed");
    assert_eq!(json["entries"][1]["line"], 1);
    assert_eq!(json["entries"][1]["words"], "-s mh");
    assert!(json["config"].as_str().unwrap().contains("[[service]]"));
    assert!(json["written_to"].is_null());
}

#[test]
fn wrong_usage_and_wrong_files() {
    let (directory, rules) = directory();
    for interface in ["adit0", "a b", "", "abcdefghijklmnop"] {
        let output = adit(&["import", "ipvsadm", path(&rules), "--interface", interface]);
        assert_eq!(output.status.code(), Some(2), "{interface}");
    }
    assert_eq!(adit(&["import", "ipvsadm", path(&rules), "--force"]).status.code(), Some(2));
    let missing = adit(&["import", "keepalived", "/nonexistent"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("/nonexistent"));

    let wrong = directory.path().join("wrong.conf");
    std::fs::write(&wrong, "virtual_server 192.0.2.1 80 {\n").unwrap();
    let config = directory.path().join("adit.toml");
    let refused = adit(&["import", "keepalived", path(&wrong), "-o", path(&config)]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("wrong.conf:1:29"), "{}", text(&refused.stderr));
    assert!(!config.exists(), "nothing is written");
    let json = adit(&["import", "keepalived", path(&wrong), "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["problems"][0]["line"], 1);
}
