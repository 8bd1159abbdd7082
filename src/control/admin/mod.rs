//! The admin interface: HTTP and JSON over a Unix socket, so that `curl --unix-socket` is a
//! client as good as `adit`. See docs/admin-api.md.

pub mod api;
mod capture;
pub mod client;
mod drain;
pub mod query;
pub mod server;
