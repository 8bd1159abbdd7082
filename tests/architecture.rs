//! Invariants of the structure, held by reading the sources.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a source folder") {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Lines of the sources below `folder` in which `forbidden` says yes. Comments do not count.
fn offenders(folder: &str, forbidden: impl Fn(&Path, &str) -> bool) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join(folder), &mut files);
    assert!(!files.is_empty(), "{folder} has sources");
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a readable source");
        let relative = file.strip_prefix(root).expect("below the root");
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if forbidden(relative, code) {
                found.push(format!("{}:{}: {}", relative.display(), number + 1, line.trim()));
            }
        }
    }
    found
}

fn assert_none(found: &[String], rule: &str) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

#[test]
fn the_core_imports_neither_io_nor_control() {
    let banned = ["crate::io", "adit_io", "crate::control", "crate::cli", "crate::worker"];
    let found = offenders("src/dataplane", |_, code| banned.iter().any(|path| code.contains(path)));
    assert_none(&found, "the core is pure");
}

#[test]
fn the_core_has_no_clock_socket_file_environment_or_randomness() {
    let banned = [
        "Instant::now",
        "SystemTime",
        "std::fs",
        "std::env",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "getrandom",
        "thread_rng",
        "tracing::",
        "println!",
    ];
    let found = offenders("src/dataplane", |_, code| banned.iter().any(|word| code.contains(word)));
    assert_none(&found, "time and randomness are arguments of the core");
}

#[test]
fn io_knows_no_services() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("io/Cargo.toml");
    let text = fs::read_to_string(manifest).expect("a manifest");
    let (package, dependencies) = text.split_once("[dependencies]").expect("dependencies");
    assert!(package.contains("name = \"adit-io\""));
    assert!(!dependencies.contains("adit"), "io knows bytes and slots:\n{dependencies}");
}

#[test]
fn unsafe_code_is_in_io_alone() {
    for folder in ["src", "realserver-setup/src", "tunnel/src"] {
        let found = offenders(folder, |_, code| {
            ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|word| code.contains(word))
        });
        assert_none(&found, "unsafe has an address: io/");
    }
}

#[test]
fn the_asynchronous_runtime_is_named_in_one_module() {
    let found = offenders("src", |file, code| {
        !file.starts_with("src/control/runtime.rs") && code.contains("tokio_uring")
    });
    assert_none(&found, "only control/runtime.rs names tokio_uring");
}
