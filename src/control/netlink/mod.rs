//! What the host's kernel knows about links, routes, neighbours and IPsec policies, and the few
//! routes Adit adds.

pub mod egress;
pub mod links;
pub mod neighbours;
pub mod routes;
pub mod vip_routes;
pub mod watch;
pub mod xfrm;

use crate::control::runtime;
use netlink_sys::AsyncSocket;
use std::io;

/// Why the kernel did not do or say what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}{}", advice(source))]
pub struct NetlinkError {
    what: String,
    source: io::Error,
}

/// What to do about it, where that is known.
fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (run as root or give CAP_NET_ADMIN)",
        _ => "",
    }
}

impl NetlinkError {
    pub(crate) fn new(what: impl Into<String>, source: io::Error) -> Self {
        NetlinkError { what: what.into(), source }
    }

    fn request(what: impl Into<String>, error: rtnetlink::Error) -> Self {
        let source = if let rtnetlink::Error::NetlinkError(message) = error {
            message.to_io()
        } else {
            io::Error::other(error)
        };
        NetlinkError { what: what.into(), source }
    }

    /// The kernel's error number, where it gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// Route netlink sockets.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    /// For lists of routes: the kernel picks the routes that were asked for, where it can (Linux 4.20).
    /// A whole routing table of the internet is not to be copied only to find a few routes in it.
    chosen: rtnetlink::Handle,
}

impl Netlink {
    /// Opens sockets in the current network namespace.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _unasked) = rtnetlink::new_connection()
            .map_err(|source| NetlinkError::new("cannot open a netlink socket", source))?;
        runtime::spawn(connection);
        let (mut connection, chosen, _unasked) = rtnetlink::new_connection()
            .map_err(|source| NetlinkError::new("cannot open a netlink socket", source))?;
        // An older kernel lists everything; what was not asked for is left out here.
        let _ = connection.socket_mut().socket_mut().set_netlink_get_strict_chk(true);
        runtime::spawn(connection);
        Ok(Netlink { handle, chosen })
    }
}

#[cfg(test)]
mod tests;
