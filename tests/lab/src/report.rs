//! What a passing test has to say: on what it ran, and what it could not run.

use std::io::Write as _;

/// Writes a line with the test's name to the standard error of the process: unlike what is printed,
/// the test runner shows that of tests that pass, too.
pub fn report(what: &str) {
    let thread = std::thread::current();
    let line = format!("{}: {what}\n", thread.name().unwrap_or("a test"));
    // In one piece, since tests run side by side. Where nobody listens there is nobody to miss it.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
