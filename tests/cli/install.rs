//! What `make install` leaves behind, looked at with the programs that will read it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::ADIT;
use crate::testing::{skipped, test_name};

/// Runs a command and gives what it printed; it must succeed.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Every file below a directory, as paths from there.
fn files_below(top: &Path) -> Vec<String> {
    let (mut found, mut ahead) = (Vec::new(), vec![PathBuf::from(top)]);
    while let Some(directory) = ahead.pop() {
        for entry in directory.read_dir().unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => ahead.push(path),
                false => found.push(path.strip_prefix(top).unwrap().display().to_string()),
            }
        }
    }
    found.sort();
    found
}

#[test]
fn manual_pages_and_completions_are_where_they_are_looked_for() {
    let binaries = Path::new(ADIT).parent().unwrap();
    if !binaries.join("adit-realserver").exists() {
        return skipped(
            &test_name(),
            "adit-realserver is not built: cargo build --workspace --bins",
        );
    }
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path();
    let mut make = Command::new("make");
    make.current_dir(env!("CARGO_MANIFEST_DIR")).args(["-s", "install-built", "PREFIX=/usr"]);
    make.arg(format!("DESTDIR={}", top.display()));
    output(make.arg(format!("BINARIES={}", binaries.display())));

    insta::assert_snapshot!(files_below(top).join("\n"));
    for page in top.join("usr/share/man/man8").read_dir().unwrap() {
        let page = page.unwrap().path();
        let text = std::fs::read_to_string(&page).unwrap();
        let name = page.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(text.contains(&format!("\n.TH {name} 8 ")), "{name}: another title or section");
    }
    for program in ["adit", "adit-realserver"] {
        let installed = top.join("usr/sbin").join(program);
        assert!(output(Command::new(installed).arg("--version")).starts_with(program));
    }
    for (unit, start) in [("adit", "adit run"), ("adit-realserver", "adit-realserver apply")] {
        let path = top.join("usr/lib/systemd/system").join(format!("{unit}.service"));
        let unit = std::fs::read_to_string(path).unwrap();
        assert!(unit.contains(&format!("\nExecStart=/usr/sbin/{start}\n")), "{unit}");
        assert!(!unit.contains("@SBIN@"), "{unit}");
    }
    let share = top.join("usr/share");
    for (file, word) in [
        ("bash-completion/completions/adit", "connections"),
        ("zsh/site-functions/_adit", "#compdef adit\n"),
        ("fish/vendor_completions.d/adit.fish", "complete -c adit "),
        ("bash-completion/completions/adit-realserver", "--path-mtu"),
        ("zsh/site-functions/_adit-realserver", "#compdef adit-realserver\n"),
        ("fish/vendor_completions.d/adit-realserver.fish", "complete -c adit-realserver "),
    ] {
        let script = std::fs::read_to_string(share.join(file)).unwrap();
        assert!(script.contains(word), "{file}");
    }
    output(Command::new("bash").arg("-n").arg(share.join("bash-completion/completions/adit")));

    if Command::new("man").arg("--version").output().is_err() {
        return skipped(&test_name(), "there is no man");
    }
    for page in ["adit", "adit-check", "adit-realserver", "adit-realserver-apply"] {
        let found = output(Command::new("man").arg("-M").arg(share.join("man")).args(["-w", page]));
        assert!(found.trim().ends_with(&format!("/man8/{page}.8")), "{found}");
    }
}
