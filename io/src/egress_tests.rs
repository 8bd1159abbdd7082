//! Paths through the kernel: what arrives is what was given, whatever the kernel thinks of path MTUs.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, recv};

use super::egress::{bind_packet, open_socket};
use super::testing::{in_namespace, run, until};
use super::*;

/// `io-a` with addresses of both families, and a socket that sees what comes out of it.
fn network(ethertype: u16) -> OwnedFd {
    run("ip link add io-a address 02:00:00:00:00:0a type veth peer name io-b");
    run("ip link set io-a up");
    run("ip link set io-b up");
    run("ip address add 10.0.0.1/24 dev io-a");
    run("ip address add fd00::1/64 dev io-a nodad");
    run("ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:0b dev io-a nud permanent");
    run("ip neigh add fd00::2 lladdr 02:00:00:00:00:0b dev io-a nud permanent");
    let exit = open_socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0).unwrap();
    bind_packet(&exit, interface_index("io-b").unwrap(), ethertype).unwrap();
    exit
}

/// An IPv4 packet with another one inside, as the data plane would make it.
fn ipv4(length: u16) -> Vec<u8> {
    let mut packet = vec![0x5a; usize::from(length)];
    packet[..20].copy_from_slice(&[
        0x45, 0x2a, 0, 0, 0x12, 0x34, 0x40, 0, 61, 4, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    let words = packet[..20].as_chunks::<2>().0.iter();
    let sum: u32 = words.map(|&word| u32::from(u16::from_be_bytes(word))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    packet[10..12].copy_from_slice(&(!checksum).to_be_bytes());
    packet
}

fn ipv6(payload: u16) -> Vec<u8> {
    let mut packet = vec![0x5a; 40 + usize::from(payload)];
    packet[..8].copy_from_slice(&[0x62, 0xa1, 0x23, 0x45, 0, 0, 41, 61]);
    packet[4..6].copy_from_slice(&payload.to_be_bytes());
    packet[8..24].copy_from_slice(&"fd00::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet[24..40].copy_from_slice(&"fd00::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet
}

fn to(destination: &str) -> EgressTarget {
    EgressTarget::Kernel { destination: destination.parse().unwrap(), source: None }
}

/// The next packet with our payload; the kernel's own (neighbour discovery) are passed over.
fn arrived(exit: &OwnedFd) -> Vec<u8> {
    until("the packet", || {
        let mut packet = vec![0; 2048];
        let length = recv(exit.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT).ok()?;
        packet.truncate(length);
        (packet.last() == Some(&0x5a)).then_some(packet)
    })
}

#[test]
fn ipv4_packets_arrive_as_they_are() {
    in_namespace("ipv4_packets_arrive_as_they_are", || {
        let exit = network(0x0800);
        let source = Some("10.0.0.1".parse().unwrap());
        let destination = "10.0.0.2".parse().unwrap();
        let path = OpenEgress::open(&EgressTarget::Kernel { destination, source }).unwrap();
        path.send(&ipv4(500)).unwrap();
        assert_eq!(arrived(&exit), ipv4(500));
        assert_eq!(path.send(&ipv4(1501)), Err(Errno::EMSGSIZE), "the device's MTU is a limit");
        // A path MTU that the kernel has learned (here: been told) is not: forged messages teach it.
        run("ip route add 10.0.0.2/32 dev io-a mtu 600");
        path.send(&ipv4(1500)).unwrap();
        assert_eq!(arrived(&exit), ipv4(1500));
    });
}

#[test]
fn ipv6_packets_arrive_as_they_are() {
    in_namespace("ipv6_packets_arrive_as_they_are", || {
        let exit = network(0x86dd);
        let path = OpenEgress::open(&to("fd00::2")).unwrap();
        path.send(&ipv6(1000)).unwrap();
        assert_eq!(arrived(&exit), ipv6(1000));
        assert_eq!(path.send(&ipv6(1461)), Err(Errno::EMSGSIZE), "the device's MTU is a limit");
        run("ip route add fd00::2/128 dev io-a mtu 1300");
        path.send(&ipv6(1460)).unwrap();
        assert_eq!(arrived(&exit), ipv6(1460));
    });
}

#[test]
fn what_cannot_be_opened_says_why() {
    in_namespace("what_cannot_be_opened_says_why", || {
        let no_route = OpenEgress::open(&to("203.0.113.1")).unwrap_err();
        assert_eq!(no_route.errno, Errno::ENETUNREACH, "{no_route}");
        let no_interface = OpenEgress::open(&EgressTarget::Direct { interface: 999 }).unwrap_err();
        assert_eq!(no_interface.errno, Errno::ENODEV, "{no_interface}");
        assert!(no_interface.to_string().contains("ip link"), "{no_interface}");
        let _exit = network(0x0800);
        let destination = "10.0.0.2".parse().unwrap();
        let source = Some("203.0.113.9".parse().unwrap());
        let foreign = OpenEgress::open(&EgressTarget::Kernel { destination, source }).unwrap_err();
        assert_eq!(foreign.errno, Errno::EADDRNOTAVAIL, "{foreign}");
    });
}
