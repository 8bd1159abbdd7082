//! Network devices.

use super::{Netlink, NetlinkError};
use futures_util::TryStreamExt;
use netlink_packet_route::link::{
    BridgeMulticastRouterType, InfoBridgePort, InfoKind, InfoPortData, InfoPortKind, LinkAttribute,
    LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::LinkUnspec;

/// A device as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in this network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Largest packet, without the link header.
    pub mtu: u32,
    /// Whether frames have Ethernet headers (ARPHRD_ETHER).
    pub ethernet: bool,
    /// Its own address, where it is Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Whether it is set up.
    pub up: bool,
    /// Whether it is a bridge.
    pub is_bridge: bool,
    /// The device that it is a port of (a bridge, a bond).
    pub controller: Option<u32>,
    /// Whether it is a port of a bridge. Asked of the kernel, since /sys may show the devices of
    /// another network namespace.
    pub in_bridge: bool,
    /// Packets to it that were dropped before it had them, because its queue was full.
    pub tx_dropped: u64,
}

impl Netlink {
    /// The device of that name; `None` when there is none.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn link_by_name(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let request = self.handle.link().get().match_name(name.to_owned());
        let answer = request.execute().try_next().await;
        found(answer, || format!("cannot look up the device {name}"))
    }

    /// The device of that number; `None` when there is none.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let answer = self.handle.link().get().match_index(index).execute().try_next().await;
        found(answer, || format!("cannot look up the device with index {index}"))
    }

    /// Makes a device a port of a bridge, to which all multicast goes: with snooping, the bridge would
    /// keep neighbour solicitations from it, whose groups nobody on the port has joined.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_bridge_port(&self, index: u32, bridge: u32) -> Result<(), NetlinkError> {
        let refused = |error| {
            NetlinkError::request(
                format!("cannot make the device with index {index} a port of the bridge"),
                error,
            )
        };
        let port = LinkUnspec::new_with_index(index).controller(bridge).build();
        self.handle.link().set(port).execute().await.map_err(refused)?;
        let router = InfoBridgePort::MulticastRouter(BridgeMulticastRouterType::Permanent);
        let info = LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![router])),
        ]);
        let port = LinkUnspec::new_with_index(index).append_extra_attribute(info).build();
        self.handle.link().set_port(port).execute().await.map_err(refused)
    }

    /// Takes a device away; one that is gone already is as good.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn delete_link(&self, index: u32) -> Result<(), NetlinkError> {
        match self.handle.link().del(index).execute().await {
            Ok(()) => Ok(()),
            Err(error) => {
                let error = NetlinkError::request(
                    format!("cannot take away the device with index {index}"),
                    error,
                );
                if error.errno() == Some(libc::ENODEV) { Ok(()) } else { Err(error) }
            }
        }
    }
}

fn found(
    answer: Result<Option<LinkMessage>, rtnetlink::Error>,
    what: impl Fn() -> String,
) -> Result<Option<Link>, NetlinkError> {
    match answer {
        Ok(message) => Ok(message.as_ref().map(link)),
        Err(error) => {
            let error = NetlinkError::request(what(), error);
            if error.errno() == Some(libc::ENODEV) { Ok(None) } else { Err(error) }
        }
    }
}

pub(super) fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        mac: None,
        up: message.header.flags.contains(LinkFlags::Up),
        is_bridge: false,
        controller: None,
        in_bridge: false,
        tx_dropped: 0,
    };
    for attribute in &message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name.clone_from(name);
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            link.mtu = *mtu;
        } else if let LinkAttribute::Address(address) = attribute {
            link.mac = address.as_slice().try_into().ok();
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            link.in_bridge = infos.contains(&LinkInfo::PortKind(InfoPortKind::Bridge));
            link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
        } else if let LinkAttribute::Controller(index) = attribute {
            link.controller = Some(*index);
        } else if let LinkAttribute::Stats64(stats) = attribute {
            link.tx_dropped = stats.tx_dropped;
        }
    }
    link
}
