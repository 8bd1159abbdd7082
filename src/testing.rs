//! What all tests of this package share.

/// Says by name that a test does not run here; where `ADIT_TEST_REQUIRE_ALL=1` is set, as in CI,
/// that is a failure.
pub(crate) fn skipped(name: &str, why: &str) {
    let required = std::env::var_os("ADIT_TEST_REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(!required, "{name} cannot run here, and ADIT_TEST_REQUIRE_ALL=1: {why}");
    eprintln!("skipped: {name}: {why}");
}

/// The name of the test that runs on this thread.
pub(crate) fn test_name() -> String {
    std::thread::current().name().unwrap_or("?").to_owned()
}
