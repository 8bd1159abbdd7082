//! Link-layer addresses of next hops, and keeping them known.
//!
//! Direct egress writes the next hop's MAC itself, so the kernel sees no use of the neighbour and
//! would let it grow stale. Linux 5.16 can be told to look after an entry (`NTF_EXT_MANAGED`);
//! before, each use has to be announced (`NTF_USE`), which makes the kernel probe. An older kernel
//! skips the attribute it does not know without a word, so a request says both, and the next list
//! of neighbours shows which was understood.

use super::{Netlink, NetlinkError};
use futures_util::TryStreamExt;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
    NeighbourState,
};
use std::collections::HashMap;
use std::net::IpAddr;

/// A neighbour's place: device and address.
pub type NeighbourKey = (u32, IpAddr);

/// What is known of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address on the link, where it is known and may be used.
    pub mac: Option<[u8; 6]>,
    /// Set by an administrator or a routing daemon, so never probed.
    pub permanent: bool,
    /// The kernel keeps it resolved by itself.
    pub managed: bool,
}

impl Netlink {
    /// All neighbours of both families.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn neighbours(&self) -> Result<HashMap<NeighbourKey, Neighbour>, NetlinkError> {
        let mut found = HashMap::new();
        let mut answers = self.handle.neighbours().get().execute();
        loop {
            match answers.try_next().await {
                Ok(Some(message)) => found.extend(neighbour(&message)),
                Ok(None) => return Ok(found),
                Err(error) => {
                    return Err(NetlinkError::request("cannot list neighbours", error));
                }
            }
        }
    }

    /// Asks the kernel to resolve a neighbour and to keep it resolved. To be repeated while the
    /// entry is not [`managed`](Neighbour::managed), and never for one that is permanent: the
    /// kernel would take that for its own.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn keep_neighbour(&self, key: NeighbourKey) -> Result<(), NetlinkError> {
        let (interface, address) = key;
        let neighbours = self.handle.neighbours();
        let mut request = neighbours
            .add(interface, address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        let managed = NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed);
        request.message_mut().attributes.push(managed);
        request.execute().await.map_err(|error| {
            NetlinkError::request(format!("cannot look after the neighbour {address}"), error)
        })
    }

    /// Leaves a neighbour to itself again: the entry goes, and comes back when somebody needs it.
    ///
    /// # Errors
    /// When the kernel refuses; an entry that is gone is no error.
    pub async fn release_neighbour(&self, key: NeighbourKey) -> Result<(), NetlinkError> {
        let (interface, address) = key;
        let mut message = NeighbourMessage::default();
        message.header.family = super::routes::family(address);
        message.header.ifindex = interface;
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        match self.handle.neighbours().del(message).execute().await {
            Ok(()) => Ok(()),
            Err(error) => {
                let what = format!("cannot release the neighbour {address}");
                let error = NetlinkError::request(what, error);
                match error.errno() {
                    Some(libc::ENOENT | libc::ENODEV) => Ok(()),
                    _ => Err(error),
                }
            }
        }
    }
}

pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(NeighbourKey, Neighbour)> {
    let mut address = None;
    let mut mac = None;
    let mut managed = false;
    for attribute in &message.attributes {
        if let NeighbourAttribute::Destination(destination) = attribute {
            address = ip(destination);
        } else if let NeighbourAttribute::LinkLocalAddress(bytes) = attribute {
            mac = <[u8; 6]>::try_from(bytes.as_slice()).ok();
        } else if let NeighbourAttribute::ExtFlags(flags) = attribute {
            managed = flags.contains(NeighbourExtFlags::Managed);
        }
    }
    let state = message.header.state;
    // A stale address is still right until somebody says otherwise; the kernel uses it too.
    let usable = matches!(
        state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
            | NeighbourState::Noarp
    );
    let permanent = matches!(state, NeighbourState::Permanent | NeighbourState::Noarp)
        || message.header.flags.contains(NeighbourFlags::ExtLearned);
    let neighbour = Neighbour { mac: mac.filter(|_| usable), permanent, managed };
    Some(((message.header.ifindex, address?), neighbour))
}

fn ip(address: &NeighbourAddress) -> Option<IpAddr> {
    if let NeighbourAddress::Inet(v4) = address {
        Some(IpAddr::V4(*v4))
    } else if let NeighbourAddress::Inet6(v6) = address {
        Some(IpAddr::V6(*v6))
    } else {
        None
    }
}
