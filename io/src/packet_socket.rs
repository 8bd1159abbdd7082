//! AF_PACKET sockets that receive: neighbour requests on the client-facing interface, and errors
//! about outer packets before netfilter sees them.

use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use thiserror::Error;

use super::egress::{bind_packet, open_socket, set_option};
use super::errno::advice;

/// A receive socket that could not be opened.
#[derive(Debug, Error)]
#[error("packet socket for {purpose}: {action}: {errno}{}", advice(*errno))]
pub struct PacketSocketError {
    /// What it would receive.
    pub purpose: &'static str,
    /// What was tried.
    pub action: &'static str,
    /// The kernel's answer.
    pub errno: Errno,
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Receives ARP and ICMPv6 neighbour discovery on one interface, Ethernet header first: questions
/// for a VIP, and what others say about one (an address conflict).
///
/// Two sockets, because one for both ethertypes would have to see all traffic of the interface; so
/// IPv4 packets pass no filter of ours at all.
#[derive(Debug)]
pub struct NeighbourSockets {
    pub(super) sockets: [OwnedFd; 2],
    interface: u32,
}

impl NeighbourSockets {
    /// Opens both sockets.
    ///
    /// # Errors
    /// No privilege, no such interface.
    pub fn open(interface: u32) -> Result<Self, PacketSocketError> {
        let arp =
            Receive { purpose: "ARP", kind: libc::SOCK_RAW, interface, ethertype: ETHERTYPE_ARP };
        let discovery = Receive {
            purpose: "neighbour discovery",
            kind: libc::SOCK_RAW,
            interface,
            ethertype: ETHERTYPE_IPV6,
        };
        let sockets = [arp.open(&arp_messages())?, discovery.open(&neighbour_messages())?];
        Ok(Self { sockets, interface })
    }

    /// Lets the interface receive frames to a multicast MAC (the solicited-node group of a VIP)
    /// while the sockets are open. Switches that snoop learn of it by [`JoinedGroups`].
    ///
    /// # Errors
    /// `ENODEV` when the interface is gone.
    pub fn receive_group(&self, mac: [u8; 6]) -> Result<(), PacketSocketError> {
        let mut address = [0; 8];
        address[..6].copy_from_slice(&mac);
        let request = libc::packet_mreq {
            mr_ifindex: i32::try_from(self.interface).unwrap_or(i32::MAX),
            mr_type: PACKET_MR_MULTICAST,
            mr_alen: 6,
            mr_address: address,
        };
        set_option(&self.sockets[1], libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, request)
            .map_err(|errno| PacketSocketError {
                purpose: "neighbour discovery",
                action: "receive a multicast group",
                errno,
            })
    }
}

const PACKET_MR_MULTICAST: libc::c_ushort = 0;

/// Memberships in IPv6 multicast groups on one interface: the kernel reports them by MLD, so that
/// switches that snoop forward solicitations for the VIPs. Left when this is dropped.
#[derive(Debug)]
pub struct JoinedGroups {
    socket: OwnedFd,
    interface: u32,
}

impl JoinedGroups {
    /// A socket without memberships.
    ///
    /// # Errors
    /// `EAFNOSUPPORT` when the host has no IPv6.
    pub fn new(interface: u32) -> Result<Self, PacketSocketError> {
        let socket = open_socket(libc::AF_INET6, libc::SOCK_DGRAM, 0).map_err(|errno| {
            PacketSocketError { purpose: "multicast groups", action: "open", errno }
        })?;
        Ok(Self { socket, interface })
    }

    /// Joins a group. Joining twice is fine.
    ///
    /// # Errors
    /// `ENODEV` when IPv6 is off on the interface; `ENOMEM` past `net.ipv6.mld_max_msf` and the like.
    pub fn join(&self, group: Ipv6Addr) -> Result<(), PacketSocketError> {
        let request = libc::ipv6_mreq {
            ipv6mr_multiaddr: libc::in6_addr { s6_addr: group.octets() },
            ipv6mr_interface: self.interface,
        };
        match set_option(&self.socket, libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP, request) {
            Ok(()) | Err(Errno::EADDRINUSE) => Ok(()),
            Err(errno) => Err(PacketSocketError {
                purpose: "multicast groups",
                action: "join a group",
                errno,
            }),
        }
    }
}

/// Receives ICMP and ICMPv6 errors that quote a tunnel packet (protocol 4, 41 or 47, or UDP that may
/// be GUE), IP header first, on all interfaces. AF_PACKET sees them before netfilter, which calls them INVALID.
#[derive(Debug)]
pub struct OuterErrorSockets {
    pub(super) sockets: [OwnedFd; 2],
}

impl OuterErrorSockets {
    /// Opens both sockets.
    ///
    /// # Errors
    /// No privilege.
    pub fn open() -> Result<Self, PacketSocketError> {
        let v4 = Receive {
            purpose: "errors about outer IPv4 packets",
            kind: libc::SOCK_DGRAM,
            interface: 0,
            ethertype: ETHERTYPE_IPV4,
        };
        let v6 = Receive {
            purpose: "errors about outer IPv6 packets",
            kind: libc::SOCK_DGRAM,
            interface: 0,
            ethertype: ETHERTYPE_IPV6,
        };
        Ok(Self { sockets: [v4.open(&icmp_errors())?, v6.open(&icmpv6_errors())?] })
    }
}

/// How to open a receive socket.
struct Receive {
    purpose: &'static str,
    kind: libc::c_int,
    interface: u32,
    ethertype: u16,
}

impl Receive {
    fn open(&self, filter: &[libc::sock_filter]) -> Result<OwnedFd, PacketSocketError> {
        let error =
            |action| move |errno| PacketSocketError { purpose: self.purpose, action, errno };
        // Protocol 0 until the filter is in place, so that nothing unfiltered is ever queued.
        let socket = open_socket(libc::AF_PACKET, self.kind, 0).map_err(error("open"))?;
        attach_filter(&socket, filter).map_err(error("attach the filter"))?;
        bind_packet(&socket, self.interface, self.ethertype).map_err(error("bind"))?;
        Ok(socket)
    }
}

/// Makes a socket drop whatever it would receive.
pub(super) fn receive_nothing(socket: &OwnedFd) -> Result<(), Errno> {
    attach_filter(socket, &[libc::sock_filter { code: BPF_RETURN, jt: 0, jf: 0, k: 0 }])
}

/// `BPF_RET | BPF_K`: end with a constant, the bytes to accept.
const BPF_RETURN: u16 = 0x06;

fn attach_filter(socket: &OwnedFd, filter: &[libc::sock_filter]) -> Result<(), Errno> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| Errno::EINVAL)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // The kernel copies the program during the call and writes nothing through the pointer.
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program)
}

// Classic BPF, as in linux/filter.h. Jumps are relative; a packet that is shorter than a load asks
// for is dropped.
const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
const LOAD_HALF: u16 = 0x28; // BPF_LD | BPF_H | BPF_ABS
const LOAD_BYTE_INDEXED: u16 = 0x50; // BPF_LD | BPF_B | BPF_IND
const LOAD_HALF_INDEXED: u16 = 0x48; // BPF_LD | BPF_H | BPF_IND
const LOAD_HEADER_LENGTH: u16 = 0xb1; // BPF_LDX | BPF_B | BPF_MSH: X = 4 * (byte & 15)
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_ABOVE: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP_ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
/// Pseudo-offset of the packet type (SKF_AD_OFF + SKF_AD_PKTTYPE).
const PACKET_TYPE: u32 = (-0x1000_i32 + 4) as u32;
const PACKET_HOST: u32 = 0;
const PACKET_MULTICAST: u32 = 2;
const ACCEPT: u32 = 0x0004_0000;
const REJECT: u32 = 0;

const fn load(code: u16, offset: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k: offset }
}

const fn jump(code: u16, k: u32, if_true: u8, if_false: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt: if_true, jf: if_false, k }
}

const fn give(bytes: u32) -> libc::sock_filter {
    libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: bytes }
}

/// ARP with operation 1 or 2 (request, reply), to us, broadcast or multicast.
fn arp_messages() -> [libc::sock_filter; 7] {
    [
        load(LOAD_BYTE, PACKET_TYPE),
        jump(JUMP_ABOVE, PACKET_MULTICAST, 4, 0),
        load(LOAD_HALF, 14 + 6),
        jump(JUMP_EQUAL, 1, 1, 0),
        jump(JUMP_EQUAL, 2, 0, 1),
        give(ACCEPT),
        give(REJECT),
    ]
}

/// ICMPv6 types 135 and 136 (solicitation, advertisement) directly behind the IPv6 header
/// (RFC 4861 §4.3; hosts send none with extension headers), to us, broadcast or multicast.
fn neighbour_messages() -> [libc::sock_filter; 9] {
    [
        load(LOAD_BYTE, PACKET_TYPE),
        jump(JUMP_ABOVE, PACKET_MULTICAST, 6, 0),
        load(LOAD_BYTE, 14 + 6),
        jump(JUMP_EQUAL, 58, 0, 4),
        load(LOAD_BYTE, 14 + 40),
        jump(JUMP_EQUAL, 135, 1, 0),
        jump(JUMP_EQUAL, 136, 0, 1),
        give(ACCEPT),
        give(REJECT),
    ]
}

/// Source ports of GUE begin here. Its destination port is the configuration's to choose and may
/// change while the socket is open, so that it is left to the core to look at.
const GUE_SOURCE_PORTS: u32 = 0xc000;

/// ICMP types 3 (unreachable, fragmentation needed), 11 (time exceeded) and 12 (parameter problem)
/// to this host, not a fragment, whose quote is of protocol 4 (RFC 2003), 41 (RFC 4213) or 47 (GRE),
/// or of UDP as GUE sends it. Outer headers have no options.
fn icmp_errors() -> [libc::sock_filter; 20] {
    [
        load(LOAD_BYTE, PACKET_TYPE),
        jump(JUMP_EQUAL, PACKET_HOST, 0, 17),
        load(LOAD_BYTE, 9),
        jump(JUMP_EQUAL, 1, 0, 15),
        load(LOAD_HALF, 6),
        jump(JUMP_ANY_BIT, 0x1fff, 13, 0),
        load(LOAD_HEADER_LENGTH, 0),
        load(LOAD_BYTE_INDEXED, 0),
        jump(JUMP_EQUAL, 3, 2, 0),
        jump(JUMP_EQUAL, 11, 1, 0),
        jump(JUMP_EQUAL, 12, 0, 8),
        load(LOAD_BYTE_INDEXED, 8 + 9),
        jump(JUMP_EQUAL, 4, 5, 0),
        jump(JUMP_EQUAL, 41, 4, 0),
        jump(JUMP_EQUAL, 47, 3, 0),
        jump(JUMP_EQUAL, 17, 0, 3),
        load(LOAD_HALF_INDEXED, 8 + 20),
        jump(JUMP_AT_LEAST, GUE_SOURCE_PORTS, 0, 1),
        give(ACCEPT),
        give(REJECT),
    ]
}

/// ICMPv6 types 1 to 4 to this host whose quoted IPv6 header is followed by protocol 4, 41
/// (RFC 2473) or 47, by UDP as GUE sends it, or by a fragment header (outer fragments, RFC 2473
/// §7.1) and then one of them.
fn icmpv6_errors() -> [libc::sock_filter; 21] {
    [
        load(LOAD_BYTE, PACKET_TYPE),
        jump(JUMP_EQUAL, PACKET_HOST, 0, 18),
        load(LOAD_BYTE, 6),
        jump(JUMP_EQUAL, 58, 0, 16),
        load(LOAD_BYTE, 40),
        jump(JUMP_EQUAL, 0, 14, 0),
        jump(JUMP_ABOVE, 4, 13, 0),
        load(LOAD_BYTE, 48 + 6),
        jump(JUMP_EQUAL, 44, 0, 4),
        load(LOAD_BYTE, 48 + 40),
        jump(JUMP_EQUAL, 17, 0, 5),
        load(LOAD_HALF, 48 + 40 + 8),
        jump(JUMP_AT_LEAST, GUE_SOURCE_PORTS, 6, 7),
        jump(JUMP_EQUAL, 17, 0, 2),
        load(LOAD_HALF, 48 + 40),
        jump(JUMP_AT_LEAST, GUE_SOURCE_PORTS, 3, 4),
        jump(JUMP_EQUAL, 4, 2, 0),
        jump(JUMP_EQUAL, 41, 1, 0),
        jump(JUMP_EQUAL, 47, 0, 1),
        give(ACCEPT),
        give(REJECT),
    ]
}
