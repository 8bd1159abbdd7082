//! What the filters let through, on a real veth pair.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, recv, send};

use super::testing::{in_namespace, run, until};
use super::*;

const US: [u8; 6] = [2, 0, 0, 0, 0, 0x0a];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 0x0b];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 0x0c];
const BROADCAST: [u8; 6] = [0xff; 6];
const SOLICITED: [u8; 6] = [0x33, 0x33, 0xff, 0, 0, 1];

/// A pair of interfaces, of which `io-a` is ours; IPv6 off, so that nothing but tests is on it.
fn pair() -> (u32, OpenEgress) {
    run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
    run(
        "ip link add io-a address 02:00:00:00:00:0a type veth peer name io-b address 02:00:00:00:00:0b",
    );
    run("ip link set io-a up");
    run("ip link set io-b up");
    let peer = EgressTarget::Direct { interface: interface_index("io-b").unwrap() };
    (interface_index("io-a").unwrap(), OpenEgress::open(&peer).unwrap())
}

fn ethernet(to: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &PEER, &ethertype.to_be_bytes(), payload].concat()
}

fn arp(operation: u16) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    packet.resize(46, 0);
    packet
}

fn ipv4(protocol: u8, fragment: u16, options: usize, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 20 + options];
    packet[0] = 0x45 + u8::try_from(options / 4).unwrap();
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet[9] = protocol;
    packet.extend(payload);
    packet
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x60;
    packet[6] = next;
    packet.extend(payload);
    packet
}

fn icmp(kind: u8, quote: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0], quote].concat()
}

struct Case {
    name: &'static str,
    frame: Vec<u8>,
    passes: bool,
}

fn case(name: &'static str, passes: bool, frame: Vec<u8>) -> Case {
    Case { name, frame, passes }
}

fn receive(socket: &OwnedFd) -> Option<Vec<u8>> {
    let mut frame = vec![0; 2048];
    let length = recv(socket.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT).ok()?;
    frame.truncate(length);
    Some(frame)
}

/// Sends each case and then a frame that passes; what arrives before that one is the case.
fn check(socket: &OwnedFd, peer: &OpenEgress, link_header: usize, passing: &[u8], cases: &[Case]) {
    let mut sentinel = passing.to_vec();
    sentinel.extend(b"sentinel");
    for Case { name, frame, passes } in cases {
        send(peer.as_raw_fd(), frame, MsgFlags::empty()).unwrap();
        send(peer.as_raw_fd(), &sentinel, MsgFlags::empty()).unwrap();
        let first = until(name, || receive(socket));
        if *passes {
            assert_eq!(first, frame[14 - link_header..], "{name}");
            assert_eq!(until(name, || receive(socket)), sentinel[14 - link_header..], "{name}");
        } else {
            assert_eq!(first, sentinel[14 - link_header..], "{name} was let through");
        }
    }
}

#[test]
fn neighbour_messages_pass_and_nothing_else() {
    in_namespace("neighbour_messages_pass_and_nothing_else", || {
        let (us, peer) = pair();
        let sockets = NeighbourSockets::open(us).unwrap();
        sockets.receive_group(SOLICITED).unwrap();
        let request = ethernet(BROADCAST, 0x0806, &arp(1));
        check(
            &sockets.sockets[0],
            &peer,
            14,
            &request,
            &[
                case("broadcast request", true, request.clone()),
                case("unicast request", true, ethernet(US, 0x0806, &arp(1))),
                case("reply", true, ethernet(US, 0x0806, &arp(2))),
                case("reverse request", false, ethernet(US, 0x0806, &arp(3))),
                case("request to another host", false, ethernet(OTHER, 0x0806, &arp(1))),
                case("IPv4", false, ethernet(US, 0x0800, &ipv4(6, 0, 0, &[0; 20]))),
            ],
        );
        let solicitation = |to, kind| ethernet(to, 0x86dd, &ipv6(58, &icmp(kind, &[0; 16])));
        check(
            &sockets.sockets[1],
            &peer,
            14,
            &solicitation(SOLICITED, 135),
            &[
                case("multicast solicitation", true, solicitation(SOLICITED, 135)),
                case("unicast solicitation", true, solicitation(US, 135)),
                case("advertisement", true, solicitation(US, 136)),
                case("redirect", false, solicitation(US, 137)),
                case("router advertisement", false, solicitation(US, 134)),
                case("echo request", false, solicitation(US, 128)),
                case("TCP", false, ethernet(US, 0x86dd, &ipv6(6, &icmp(135, &[0; 16])))),
                case("to another host", false, solicitation(OTHER, 135)),
            ],
        );
    });
}

#[test]
fn errors_about_outer_packets_pass_and_nothing_else() {
    in_namespace("errors_about_outer_packets_pass_and_nothing_else", || {
        let (_, peer) = pair();
        let sockets = OuterErrorSockets::open().unwrap();
        let quote = |protocol| ipv4(protocol, 0, 0, &[0; 8]);
        let error =
            |kind, protocol| ethernet(US, 0x0800, &ipv4(1, 0, 0, &icmp(kind, &quote(protocol))));
        let to_other = ethernet(OTHER, 0x0800, &ipv4(1, 0, 0, &icmp(3, &quote(4))));
        let fragment = ethernet(US, 0x0800, &ipv4(1, 1, 0, &icmp(3, &quote(4))));
        let first_fragment = ethernet(US, 0x0800, &ipv4(1, 0x2000, 0, &icmp(3, &quote(4))));
        let options = ethernet(US, 0x0800, &ipv4(1, 0, 8, &icmp(3, &quote(4))));
        let not_icmp = ethernet(US, 0x0800, &ipv4(17, 0, 0, &icmp(3, &quote(4))));
        let short = ethernet(US, 0x0800, &ipv4(1, 0, 0, &icmp(3, &quote(4)[..9])));
        let about_udp = |port: u16| {
            let [high, low] = port.to_be_bytes();
            let quote = ipv4(17, 0, 0, &[high, low, 0x17, 0xc0, 0, 32, 0, 0]);
            ethernet(US, 0x0800, &ipv4(1, 0, 0, &icmp(3, &quote)))
        };
        check(
            &sockets.sockets[0],
            &peer,
            0,
            &error(3, 4),
            &[
                case("unreachable, 4 in 4", true, error(3, 4)),
                case("time exceeded, 6 in 4", true, error(11, 41)),
                case("parameter problem", true, error(12, 4)),
                case("GRE", true, error(3, 47)),
                case("GUE's first port", true, about_udp(49_152)),
                case("GUE's last port", true, about_udp(65_535)),
                case("UDP of others", false, about_udp(49_151)),
                case("behind IP options", true, options),
                case("first fragment", true, first_fragment),
                case("later fragment", false, fragment),
                case("about TCP", false, error(3, 6)),
                case("echo request", false, error(8, 4)),
                case("redirect", false, error(5, 4)),
                case("source quench", false, error(4, 4)),
                case("not ICMP", false, not_icmp),
                case("to another host", false, to_other),
                case("quote too short", false, short),
            ],
        );

        let quote = |next| ipv6(next, &[0; 16]);
        let error = |kind, next| ethernet(US, 0x86dd, &ipv6(58, &icmp(kind, &quote(next))));
        let fragments = |next: u8| {
            ethernet(US, 0x86dd, &ipv6(58, &icmp(2, &ipv6(44, &[next, 0, 0, 0, 0, 0, 0, 0]))))
        };
        let udp = |port: u16| [&port.to_be_bytes()[..], &[0x17, 0xc0, 0, 32, 0, 0]].concat();
        let about_udp = |port| ethernet(US, 0x86dd, &ipv6(58, &icmp(2, &ipv6(17, &udp(port)))));
        let fragment_of_udp = |port| {
            let payload = [&[17, 0, 0, 1, 0, 0, 0, 0][..], &udp(port)].concat();
            ethernet(US, 0x86dd, &ipv6(58, &icmp(2, &ipv6(44, &payload))))
        };
        check(
            &sockets.sockets[1],
            &peer,
            0,
            &error(2, 41),
            &[
                case("unreachable, 4 in 6", true, error(1, 4)),
                case("too big, 6 in 6", true, error(2, 41)),
                case("time exceeded", true, error(3, 4)),
                case("parameter problem", true, error(4, 41)),
                case("outer fragments", true, fragments(41)),
                case("outer fragments of GRE", true, fragments(47)),
                case("outer fragments of GUE", true, fragment_of_udp(49_152)),
                case("fragments of UDP", false, fragment_of_udp(49_151)),
                case("later fragments of UDP", false, fragments(17)),
                case("GRE", true, error(2, 47)),
                case("GUE", true, about_udp(65_535)),
                case("UDP of others", false, about_udp(49_151)),
                case("type 0", false, error(0, 4)),
                case("type 5", false, error(5, 4)),
                case("echo reply", false, error(129, 4)),
                case("about TCP", false, error(2, 6)),
                case("not ICMPv6", false, ethernet(US, 0x86dd, &ipv6(17, &icmp(2, &quote(41))))),
            ],
        );
    });
}

#[test]
fn a_joined_group_is_reported_and_left() {
    in_namespace("a_joined_group_is_reported_and_left", || {
        run("ip link add io-a type veth peer name io-b");
        run("ip link set io-a up");
        let group = "ff02::1:ff00:1234".parse().unwrap();
        let member = || {
            let mut list = std::process::Command::new("ip");
            let output = list.args(["-6", "maddr", "show", "io-a"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().contains("ff02::1:ff00:1234")
        };
        let groups = JoinedGroups::new(interface_index("io-a").unwrap()).unwrap();
        assert!(!member());
        groups.join(group).unwrap();
        groups.join(group).unwrap();
        assert!(member());
        drop(groups);
        until("the group to be left", || (!member()).then_some(()));
    });
}
