//! Tests that need what a machine does not have.

use crate::report::report;

/// Says why a test does not run here; where `ADIT_TEST_REQUIRE_ALL=1` is set, as in CI, that is a
/// failure.
///
/// # Panics
/// In CI.
pub fn skipped(why: &str) {
    let required = std::env::var_os("ADIT_TEST_REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(!required, "a test cannot run here, and ADIT_TEST_REQUIRE_ALL=1: {why}");
    report(&format!("skipped: {why}"));
}

/// Whether networks of hosts can be built at all; says why not.
#[must_use]
pub fn has_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skipped("networks of hosts need root");
    }
    root
}

/// Whether there are guests with a kernel of their own here; says why not.
#[must_use]
pub fn has_guests() -> bool {
    let found = is_in_path("linux.uml");
    if !found {
        skipped("there is no User-Mode Linux here");
    }
    found
}

/// Whether a program is installed here that a test cannot do without; says that it is not.
#[must_use]
pub fn has_program(name: &str) -> bool {
    let found = is_in_path(name);
    if !found {
        skipped(&format!("there is no {name} here"));
    }
    found
}

fn is_in_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}
