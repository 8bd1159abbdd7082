//! Hearing of changes on the host.

use super::neighbours::{NeighbourKey, neighbour};
use super::vip_routes::ROUTE_PROTOCOL;
use super::{NetlinkError, xfrm};
use crate::control::runtime;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteProtocol;
use netlink_sys::{AsyncSocketExt, TokioSocket};
use rtnetlink::MulticastGroup;
use std::io;

/// Something changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostChange {
    /// A neighbour, which matters only where it is a next hop.
    Neighbour(NeighbourKey),
    /// IPsec policies.
    Policy,
    /// A route of a VIP to a TAP, or the one behind it.
    VipRoute,
    /// The device of this number.
    Device(u32),
    /// Addresses, routes or rules; or some messages were lost, which may have been any of them.
    Other,
}

/// Sockets that hear of changes.
pub struct HostWatch {
    routes: BoxStream<'static, HostChange>,
    /// `None` on a kernel without IPsec.
    policies: Option<TokioSocket>,
}

impl HostWatch {
    /// Starts to listen.
    ///
    /// # Errors
    /// When the kernel refuses the sockets.
    pub fn open() -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ];
        let what = "cannot listen for changes of routes";
        let (connection, _handle, messages) = rtnetlink::new_multicast_connection(&groups)
            .map_err(|source| NetlinkError::new(what, source))?;
        runtime::spawn(connection);
        let policies = match xfrm::watch() {
            Ok(socket) => Some(socket),
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => None,
            Err(source) => {
                let what = "cannot listen for changes of IPsec policies";
                return Err(NetlinkError::new(what, source));
            }
        };
        let routes = messages.map(|(message, _)| change(&message)).boxed();
        Ok(HostWatch { routes, policies })
    }

    /// Waits for a change.
    ///
    /// # Errors
    /// When a socket has failed for good; changes would go unseen from then on.
    pub async fn changed(&mut self) -> Result<HostChange, NetlinkError> {
        let policies = async {
            match &self.policies {
                Some(socket) => socket.recv_from_full().await.map(|_| ()),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = self.routes.next() => change.ok_or_else(|| {
                let source = io::ErrorKind::UnexpectedEof.into();
                NetlinkError::new("the netlink socket was closed", source)
            }),
            policy = policies => match policy {
                Ok(()) => Ok(HostChange::Policy),
                // The kernel dropped messages because we were late.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => Ok(HostChange::Policy),
                Err(source) => Err(NetlinkError::new("cannot watch IPsec policies", source)),
            },
        }
    }
}

fn change(message: &NetlinkMessage<RouteNetlinkMessage>) -> HostChange {
    let NetlinkPayload::InnerMessage(message) = &message.payload else { return HostChange::Other };
    if let RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message) =
        message
    {
        return neighbour(message).map_or(HostChange::Other, |(key, _)| HostChange::Neighbour(key));
    }
    if let RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message) = message {
        return HostChange::Device(message.header.index);
    }
    if let RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) = message
        && message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
    {
        return HostChange::VipRoute;
    }
    HostChange::Other
}
