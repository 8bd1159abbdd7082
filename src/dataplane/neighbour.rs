//! Answers to who has a VIP: ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861).
//!
//! Adit answers itself, at once and only while it runs; the kernel's proxy entries answer late,
//! and go on for a dead process.

use std::{net::Ipv4Addr, net::Ipv6Addr, ops::Range};

use adit_tunnel::checksum;

use super::{
    icmp::{self, v6},
    packet::{
        Address, Datagram, ETHERNET_HEADER, ETHERTYPE_ARP, ETHERTYPE_IPV6, Family, address, be16,
        protocol,
    },
    verdict::DropReason,
};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Length of an ARP packet for IPv4 on Ethernet.
const ARP: usize = 28;
/// Length of an Ethernet frame with such a packet, without padding.
pub const ARP_FRAME: usize = ETHERNET_HEADER + ARP;
/// What an ARP packet for IPv4 on Ethernet begins with: hardware type 1, protocol type IPv4,
/// address lengths 6 and 4.
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// ARP operations.
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;

const IPV6_HEADER: usize = 40;
/// Length of a solicitation or advertisement without options (RFC 4861 §4.3, §4.4).
const ND_MESSAGE: usize = 24;
/// Length of the link-layer address option with an Ethernet address (RFC 4861 §4.6.1).
const LINK_LAYER_OPTION: usize = 8;
const ADVERTISEMENT: usize = ND_MESSAGE + LINK_LAYER_OPTION;
/// Length of the Ethernet frame with a neighbour advertisement.
pub const ADVERTISEMENT_FRAME: usize = ETHERNET_HEADER + IPV6_HEADER + ADVERTISEMENT;
/// A router would have lowered it: the message comes from the link (RFC 4861 §7.1).
const ND_HOP_LIMIT: u8 = 255;
const OPTION_SOURCE_LINK_LAYER: u8 = 1;
const OPTION_TARGET_LINK_LAYER: u8 = 2;
/// Flags of an advertisement (RFC 4861 §4.4).
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

const BROADCAST: Mac = [0xff; 6];
/// ff02::1, and the Ethernet group it maps to (RFC 2464 §7).
const ALL_NODES: Address = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
/// The first 13 bytes of a solicited-node group (RFC 4291 §2.7.1).
const SOLICITED_NODE: [u8; 13] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];

/// What became of a frame that may ask for a VIP's link-layer address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The slot's range is the answer, a whole Ethernet frame.
    Reply(Range<usize>),
    /// Not about a VIP, or nothing that is answered.
    NotOurs,
    /// Another host on the link says that a VIP is at its address: a second director that thinks
    /// it is in charge, or a real server that does not keep quiet (`arp_ignore`, `arp_announce`).
    Conflict {
        /// The VIP.
        vip: Address,
        /// Who claims it.
        mac: Mac,
    },
    /// About a VIP, and against the rules of its protocol.
    Malformed(DropReason),
}

/// Answers the Ethernet frame at `slot[frame]` in place, if it asks for the link-layer address of
/// a VIP. `mac` is the address of the interface it came in on, which is the answer.
pub fn answer(
    slot: &mut [u8],
    frame: Range<usize>,
    mac: Mac,
    is_vip: impl Fn(&Address) -> bool,
) -> Answer {
    let Some(bytes) = slot.get(frame.clone()).filter(|bytes| bytes.len() >= ETHERNET_HEADER) else {
        return Answer::Malformed(DropReason::Truncated);
    };
    match be16(bytes, 12) {
        ETHERTYPE_ARP => answer_arp(slot, frame, mac, is_vip),
        ETHERTYPE_IPV6 => answer_ipv6(slot, frame, mac, is_vip),
        _ => Answer::NotOurs,
    }
}

/// Whether the packet is a neighbour solicitation, to be given to [`answer`].
pub fn is_solicitation(datagram: &Datagram, packet: &[u8]) -> bool {
    is_message(datagram, packet, v6::NEIGHBOUR_SOLICITATION)
}

/// Neighbour discovery never comes in fragments (RFC 6980 §5).
fn is_message(datagram: &Datagram, packet: &[u8], kind: u8) -> bool {
    datagram.family == Family::V6
        && datagram.protocol == protocol::ICMPV6
        && datagram.fragment.is_none()
        && packet[..datagram.total_len].get(datagram.header_len) == Some(&kind)
}

/// An ARP packet for IPv4 on Ethernet.
struct Arp {
    operation: u16,
    sender_mac: Mac,
    sender: [u8; 4],
    target: [u8; 4],
}

impl Arp {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let packet: &[u8; ARP] = bytes.first_chunk()?;
        packet.starts_with(&ARP_ETHERNET_IPV4).then(|| Self {
            operation: be16(packet, 6),
            sender_mac: chunk(packet, 8),
            sender: chunk(packet, 14),
            target: chunk(packet, 24),
        })
    }
}

fn answer_arp(
    slot: &mut [u8],
    frame: Range<usize>,
    mac: Mac,
    is_vip: impl Fn(&Address) -> bool,
) -> Answer {
    let bytes = &slot[frame.start + ETHERNET_HEADER..frame.end];
    if bytes.len() < ARP {
        return Answer::Malformed(DropReason::Truncated);
    }
    let Some(arp) = Arp::parse(bytes) else {
        return Answer::NotOurs;
    };
    // Adit's own announcement, back from the wire.
    if arp.sender_mac == mac {
        return Answer::NotOurs;
    }
    let sender = address(Ipv4Addr::from(arp.sender).into());
    if is_vip(&sender) {
        return Answer::Conflict { vip: sender, mac: arp.sender_mac };
    }
    if arp.operation != ARP_REQUEST || !is_vip(&address(Ipv4Addr::from(arp.target).into())) {
        return Answer::NotOurs;
    }
    if is_group(arp.sender_mac) {
        return Answer::Malformed(DropReason::Malformed);
    }
    let end = frame.start + ARP_FRAME;
    let reply = ArpFields {
        operation: ARP_REPLY,
        sender_mac: mac,
        sender: arp.target,
        target_mac: arp.sender_mac,
        target: arp.sender,
    };
    write_arp(&mut slot[frame.start..end], arp.sender_mac, &reply);
    Answer::Reply(frame.start..end)
}

struct ArpFields {
    operation: u16,
    sender_mac: Mac,
    sender: [u8; 4],
    target_mac: Mac,
    target: [u8; 4],
}

/// Writes an ARP frame into [`ARP_FRAME`] bytes.
fn write_arp(frame: &mut [u8], destination: Mac, fields: &ArpFields) {
    write_ethernet(frame, destination, fields.sender_mac, ETHERTYPE_ARP);
    let packet = &mut frame[ETHERNET_HEADER..];
    packet[0..6].copy_from_slice(&ARP_ETHERNET_IPV4);
    packet[6..8].copy_from_slice(&fields.operation.to_be_bytes());
    packet[8..14].copy_from_slice(&fields.sender_mac);
    packet[14..18].copy_from_slice(&fields.sender);
    packet[18..24].copy_from_slice(&fields.target_mac);
    packet[24..28].copy_from_slice(&fields.target);
}

fn answer_ipv6(
    slot: &mut [u8],
    frame: Range<usize>,
    mac: Mac,
    is_vip: impl Fn(&Address) -> bool,
) -> Answer {
    let packet = &slot[frame.start + ETHERNET_HEADER..frame.end];
    let datagram = match Datagram::parse(packet) {
        Ok(datagram) => datagram,
        Err(error) => return Answer::Malformed(error.into()),
    };
    let solicitation = is_solicitation(&datagram, packet);
    if !solicitation && !is_message(&datagram, packet, v6::NEIGHBOUR_ADVERTISEMENT) {
        return Answer::NotOurs;
    }
    let message = &packet[datagram.header_len..datagram.total_len];
    if message.len() < ND_MESSAGE {
        return Answer::Malformed(DropReason::Truncated);
    }
    let target: Address = chunk(message, 8);
    // A mapped target is no IPv6 address, but would pass for an IPv4 VIP.
    if Family::of(&target) == Family::V4 || !is_vip(&target) {
        return Answer::NotOurs;
    }
    let link_layer = match validate(&datagram, message) {
        Ok(options) => options,
        Err(reason) => return Answer::Malformed(reason),
    };
    let sender_mac: Mac = chunk(slot, frame.start + 6);
    if sender_mac == mac {
        return Answer::NotOurs;
    }
    if !solicitation {
        let claimed = link_layer.target.unwrap_or(sender_mac);
        // Somebody else repeats what we say: that is no conflict.
        if claimed == mac {
            return Answer::NotOurs;
        }
        return Answer::Conflict { vip: target, mac: claimed };
    }
    let probe = datagram.source == [0; 16];
    if probe && (link_layer.source.is_some() || !is_solicited_node(&datagram.destination, &target))
    {
        return Answer::Malformed(DropReason::Malformed);
    }
    let asker = link_layer.source.unwrap_or(sender_mac);
    if is_group(asker) {
        return Answer::Malformed(DropReason::Malformed);
    }
    // An advertisement may be longer than its solicitation; headroom or tail room take the rest.
    let Some(start) = slot.len().checked_sub(ADVERTISEMENT_FRAME).map(|last| last.min(frame.start))
    else {
        return Answer::Malformed(DropReason::Truncated);
    };
    let range = start..start + ADVERTISEMENT_FRAME;
    let to = if probe { Asker::Unknown } else { Asker::Known(datagram.source, asker) };
    write_advertisement(&mut slot[range.clone()], mac, target, to);
    Answer::Reply(range)
}

/// Link-layer addresses in the options of a message.
#[derive(Default)]
struct LinkLayerOptions {
    source: Option<Mac>,
    target: Option<Mac>,
}

/// The checks of RFC 4861 §7.1.1 and §7.1.2 that both messages share; gives their options.
fn validate(datagram: &Datagram, message: &[u8]) -> Result<LinkLayerOptions, DropReason> {
    let sum = icmp::pseudo_header(datagram, message.len()).add_bytes(message);
    if !checksum::is_valid(sum) {
        return Err(DropReason::BadChecksum);
    }
    // The target is a VIP here, so not multicast.
    if datagram.hop_limit != ND_HOP_LIMIT || message[1] != 0 {
        return Err(DropReason::Malformed);
    }
    let mut found = LinkLayerOptions::default();
    let mut rest = &message[ND_MESSAGE..];
    // Ends: each round takes at least 8 bytes off a message that fits one packet.
    while let [kind, units, ..] = *rest {
        let length = usize::from(units) * 8;
        let Some((option, behind)) = rest.split_at_checked(length).filter(|_| length > 0) else {
            return Err(DropReason::Malformed);
        };
        match (kind, length) {
            (OPTION_SOURCE_LINK_LAYER, LINK_LAYER_OPTION) => found.source = Some(chunk(option, 2)),
            (OPTION_TARGET_LINK_LAYER, LINK_LAYER_OPTION) => found.target = Some(chunk(option, 2)),
            _ => {}
        }
        rest = behind;
    }
    if rest.is_empty() { Ok(found) } else { Err(DropReason::Malformed) }
}

/// To whom an advertisement goes.
enum Asker {
    /// Who asked.
    Known(Address, Mac),
    /// Everybody: who asked has no address yet (duplicate address detection), or nobody did.
    Unknown,
}

/// Writes a neighbour advertisement for `vip` at `mac` into [`ADVERTISEMENT_FRAME`] bytes.
fn write_advertisement(frame: &mut [u8], mac: Mac, vip: Address, to: Asker) {
    let (destination, destination_mac, flags) = match to {
        Asker::Known(address, mac) => (address, mac, SOLICITED | OVERRIDE),
        Asker::Unknown => (ALL_NODES, ALL_NODES_MAC, OVERRIDE),
    };
    write_ethernet(frame, destination_mac, mac, ETHERTYPE_IPV6);
    let packet = &mut frame[ETHERNET_HEADER..];
    packet[0..4].copy_from_slice(&[0x60, 0, 0, 0]);
    packet[4..6].copy_from_slice(&[0, 32]); // ADVERTISEMENT
    packet[6] = protocol::ICMPV6;
    packet[7] = ND_HOP_LIMIT;
    packet[8..24].copy_from_slice(&vip);
    packet[24..40].copy_from_slice(&destination);
    let message = &mut packet[IPV6_HEADER..];
    message[0..8].copy_from_slice(&[v6::NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
    message[8..24].copy_from_slice(&vip);
    message[24..26].copy_from_slice(&[OPTION_TARGET_LINK_LAYER, 1]);
    message[26..32].copy_from_slice(&mac);
    let (source, destination) = (Ipv6Addr::from(vip), Ipv6Addr::from(destination));
    let pseudo_header = checksum::pseudo_header_v6(source, destination, protocol::ICMPV6, 32);
    let sum = checksum::transport(pseudo_header, message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}

/// The frame that tells an IPv4 link where `vip` is now (RFC 5227 §2.3: an ARP request for one's
/// own address).
pub fn gratuitous_arp(mac: Mac, vip: Ipv4Addr) -> [u8; ARP_FRAME] {
    let mut frame = [0; ARP_FRAME];
    let fields = ArpFields {
        operation: ARP_REQUEST,
        sender_mac: mac,
        sender: vip.octets(),
        target_mac: [0; 6],
        target: vip.octets(),
    };
    write_arp(&mut frame, BROADCAST, &fields);
    frame
}

/// The frame that tells an IPv6 link where `vip` is now (RFC 4861 §7.2.6).
pub fn unsolicited_advertisement(mac: Mac, vip: Ipv6Addr) -> [u8; ADVERTISEMENT_FRAME] {
    let mut frame = [0; ADVERTISEMENT_FRAME];
    write_advertisement(&mut frame, mac, vip.octets(), Asker::Unknown);
    frame
}

fn write_ethernet(frame: &mut [u8], destination: Mac, source: Mac, ethertype: u16) {
    frame[0..6].copy_from_slice(&destination);
    frame[6..12].copy_from_slice(&source);
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
}

/// Whether it is a broadcast or multicast address: no host has it.
const fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

/// Whether `group` is the solicited-node group of `target`.
fn is_solicited_node(group: &Address, target: &Address) -> bool {
    group[..13] == SOLICITED_NODE && group[13..] == target[13..]
}

/// `N` bytes at `at`; the caller has checked the length.
fn chunk<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests;
