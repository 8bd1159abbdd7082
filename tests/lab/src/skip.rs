//! Tests that need what a machine does not have.

/// Says why a test does not run here; where `ADIT_TEST_REQUIRE_ALL=1` is set, as in CI, that is a
/// failure.
///
/// # Panics
/// In CI.
pub fn skipped(why: &str) {
    let required = std::env::var_os("ADIT_TEST_REQUIRE_ALL").is_some_and(|value| value == "1");
    assert!(!required, "a test cannot run here, and ADIT_TEST_REQUIRE_ALL=1: {why}");
    #[expect(clippy::print_stdout, reason = "the test runner shows it")]
    {
        println!("skipped: {why}");
    }
}
