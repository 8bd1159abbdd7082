//! Networks of hosts for tests.
