//! TCP and UDP over both versions of IP: flags, with and without a connection, lengths, checksums,
//! what the length fields say, and what fits the path.

use std::net::{IpAddr, SocketAddr};

use super::build::{Ipv4, Ipv6, Segment, datagram, flag, payload};
use super::{List, NARROW_MTU, PATH_MTU, Sent};

/// Protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A client's port and a VIP's, and IP packets between them.
#[derive(Clone, Copy)]
pub(super) struct Flow {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

impl Flow {
    /// The flow of the list's next case.
    pub(super) fn next(list: &List, v6: bool) -> Self {
        let ends = &list.ends;
        let (client, vip) = if v6 {
            (IpAddr::from(ends.client6), IpAddr::from(ends.vip6))
        } else {
            (IpAddr::from(ends.client4), IpAddr::from(ends.vip4))
        };
        Self {
            source: SocketAddr::new(client, list.client_port()),
            destination: SocketAddr::new(vip, ends.port),
        }
    }

    /// The same to the VIP whose real server is behind the narrow path.
    fn narrow(self, list: &List) -> Self {
        let vip = match self.source {
            SocketAddr::V4(_) => IpAddr::from(list.ends.narrow4),
            SocketAddr::V6(_) => IpAddr::from(list.ends.narrow6),
        };
        Self { destination: SocketAddr::new(vip, self.destination.port()), ..self }
    }

    /// An IPv4 header from one end to the other.
    pub(super) fn ipv4(&self, protocol: u8) -> Ipv4 {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(to)) => Ipv4::new(source, to, protocol),
            _ => panic!("not of IPv4: {}", self.source),
        }
    }

    /// An IPv6 header from one end to the other.
    pub(super) fn ipv6(&self, next_header: u8) -> Ipv6 {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V6(source), IpAddr::V6(to)) => Ipv6::new(source, to, next_header),
            _ => panic!("not of IPv6: {}", self.source),
        }
    }

    /// A whole packet with nothing special in its IP header.
    pub(super) fn packet(&self, protocol: u8, upper: &[u8]) -> Vec<u8> {
        if self.source.is_ipv6() {
            self.ipv6(protocol).packet(upper)
        } else {
            self.ipv4(protocol).packet(upper)
        }
    }

    pub(super) fn segment(&self, flags: u8) -> Segment {
        Segment::new(self.source, self.destination, flags)
    }

    pub(super) fn tcp(&self, flags: u8, payload: &[u8]) -> Vec<u8> {
        self.packet(TCP, &self.segment(flags).bytes(payload))
    }

    pub(super) fn datagram(&self, payload: &[u8]) -> Vec<u8> {
        datagram(self.source, self.destination, payload)
    }

    pub(super) fn udp(&self, payload: &[u8]) -> Vec<u8> {
        self.packet(UDP, &self.datagram(payload))
    }
}

/// Names of flags, and the flags.
const FLAGS: [(&str, u8); 12] = [
    ("syn", flag::SYN),
    ("syn with ece and cwr", flag::SYN | flag::ECE | flag::CWR),
    ("syn and ack", flag::SYN | flag::ACK),
    ("syn and fin", flag::SYN | flag::FIN),
    ("syn and rst", flag::SYN | flag::RST),
    ("ack", flag::ACK),
    ("psh and ack", flag::PSH | flag::ACK),
    ("fin and ack", flag::FIN | flag::ACK),
    ("rst", flag::RST),
    ("rst and ack", flag::RST | flag::ACK),
    ("no flags", 0),
    ("all flags", 0xff),
];

pub(super) fn add(list: &mut List) {
    for v6 in [false, true] {
        let version = if v6 { "ipv6" } else { "ipv4" };
        flags(list, v6, version);
        lengths(list, v6, version);
        checksums(list, v6, version);
        sizes(list, v6, version);
        elsewhere(list, v6, version);
    }
}

fn flags(list: &mut List, v6: bool, version: &str) {
    for (name, flags) in FLAGS {
        let flow = Flow::next(list, v6);
        list.add(&format!("{version} tcp first {name}"), vec![flow.tcp(flags, &[])]);
    }
    for (name, flags) in FLAGS {
        let flow = Flow::next(list, v6);
        let mut open = flow.segment(flag::ACK);
        open.sequence = 1001;
        let mut then = flow.segment(flags);
        then.sequence = 1001;
        let packets = vec![
            flow.tcp(flag::SYN, &[]),
            flow.packet(TCP, &open.bytes(&[])),
            flow.packet(TCP, &then.bytes(&[])),
        ];
        list.add(&format!("{version} tcp connection, then {name}"), packets);
    }
    let flow = Flow::next(list, v6);
    let mut talk = vec![flow.tcp(flag::SYN, &[])];
    let mut sequence = 1001;
    for length in [0, 1, 700, 1001] {
        let mut segment = flow.segment(flag::PSH | flag::ACK);
        segment.sequence = sequence;
        talk.push(flow.packet(TCP, &segment.bytes(&payload(length))));
        sequence += u32::try_from(length).expect("a segment");
    }
    let mut end = flow.segment(flag::FIN | flag::ACK);
    end.sequence = sequence;
    talk.push(flow.packet(TCP, &end.bytes(&[])));
    list.add(&format!("{version} tcp conversation"), talk);

    let flow = Flow::next(list, v6);
    let mut syn = flow.segment(flag::SYN);
    // Maximum segment size, SACK permitted, timestamps, a no-operation, window scale.
    syn.options = vec![2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 1, 2, 3, 0, 0, 0, 0, 1, 3, 3, 7];
    let packet = flow.packet(TCP, &syn.bytes(&[]));
    list.add(&format!("{version} tcp syn with options"), vec![packet]);
    let flow = Flow::next(list, v6);
    list.add(&format!("{version} tcp syn with data"), vec![flow.tcp(flag::SYN, &payload(100))]);
}

fn lengths(list: &mut List, v6: bool, version: &str) {
    for length in [0, 1, 2, 3, 7, 17, 18, 19, 255, 1001] {
        let flow = Flow::next(list, v6);
        let packet = flow.udp(&payload(length));
        list.add(&format!("{version} udp {length} bytes"), vec![packet]);
    }
    // The smallest Ethernet frame has 46 bytes behind its header (IEEE 802.3).
    for length in [0usize, 1, 3, 17] {
        let flow = Flow::next(list, v6);
        let packet = flow.udp(&payload(length));
        let trailer = 46usize.saturating_sub(packet.len()).max(2);
        let name = format!("{version} udp {length} bytes, padded frame");
        list.add_sent(&name, vec![Sent { packet, trailer }]);
    }
    let flow = Flow::next(list, v6);
    let packet = flow.tcp(flag::SYN, &[]);
    let padded = Sent { packet, trailer: 400 };
    list.add_sent(&format!("{version} tcp syn, padded frame"), vec![padded]);

    let claim = |flow: Flow, claimed: i16| {
        let upper = flow.datagram(&payload(40));
        if v6 {
            Ipv6 { claimed, ..flow.ipv6(UDP) }.packet(&upper)
        } else {
            Ipv4 { claimed, ..flow.ipv4(UDP) }.packet(&upper)
        }
    };
    let flow = Flow::next(list, v6);
    list.add(&format!("{version} udp broken: ip says more"), vec![claim(flow, 1)]);
    let flow = Flow::next(list, v6);
    list.add(&format!("{version} udp broken: ip says less"), vec![claim(flow, -8)]);
    let mut altered = |name: &str, alter: &dyn Fn(Flow) -> Vec<u8>| {
        let flow = Flow::next(list, v6);
        list.add(&format!("{version} {name}"), vec![alter(flow)]);
    };
    altered("udp broken: udp says more", &|flow| {
        let mut upper = flow.datagram(&payload(40));
        upper[5] += 8;
        flow.packet(UDP, &upper)
    });
    altered("udp broken: udp says less", &|flow| {
        let mut upper = flow.datagram(&payload(40));
        upper[5] -= 8;
        flow.packet(UDP, &upper)
    });
    altered("udp broken: half a header", &|flow| flow.packet(UDP, &flow.datagram(&[])[..4]));
    altered("tcp broken: half a header", &|flow| {
        flow.packet(TCP, &flow.segment(flag::SYN).bytes(&[])[..16])
    });
    altered("tcp broken: offset below the header", &|flow| {
        let mut upper = flow.segment(flag::SYN).bytes(&[]);
        upper[12] = 4 << 4;
        flow.packet(TCP, &upper)
    });
    altered("tcp broken: offset beyond the packet", &|flow| {
        let mut upper = flow.segment(flag::SYN).bytes(&[]);
        upper[12] = 15 << 4;
        flow.packet(TCP, &upper)
    });
    altered("tcp broken: wrong version", &|flow| {
        let mut packet = flow.tcp(flag::SYN, &[]);
        packet[0] = packet[0] & 0x0f | 0x50;
        packet
    });
}

fn checksums(list: &mut List, v6: bool, version: &str) {
    let flow = Flow::next(list, v6);
    let mut syn = flow.segment(flag::SYN);
    syn.spoil = 0x0100;
    let packet = flow.packet(TCP, &syn.bytes(&[]));
    list.add(&format!("{version} tcp with a wrong checksum"), vec![packet]);
    for (name, checksum) in [("a wrong", [0xab, 0xcd]), ("no", [0, 0])] {
        let flow = Flow::next(list, v6);
        let mut upper = flow.datagram(&payload(40));
        upper[6..8].copy_from_slice(&checksum);
        let packet = flow.packet(UDP, &upper);
        list.add(&format!("{version} udp with {name} checksum"), vec![packet]);
    }
}

/// Packets around what fits, with both ways to say what shall become of those that do not.
fn sizes(list: &mut List, v6: bool, version: &str) {
    let overhead = if v6 { 40 } else { 20 };
    let paths = [("", PATH_MTU, 1500), (" by the narrow path", NARROW_MTU, 1400)];
    for (way, mtu, long) in paths {
        let fits = mtu - overhead;
        let mut around = vec![fits, fits + 1, long];
        if v6 && mtu == NARROW_MTU {
            around.extend([1280, 1281]);
        }
        for length in around {
            let flow = |list: &List| {
                let flow = Flow::next(list, v6);
                if mtu == NARROW_MTU { flow.narrow(list) } else { flow }
            };
            if v6 {
                let flow = flow(list);
                let packet = flow.udp(&payload(length - 40 - 8));
                list.add(&format!("{version} udp, packet of {length}{way}"), vec![packet]);
                continue;
            }
            for (df, dont_fragment) in [("", false), (" with df", true)] {
                let flow = flow(list);
                let header = Ipv4 { dont_fragment, ..flow.ipv4(UDP) };
                let packet = header.packet(&flow.datagram(&payload(length - 20 - 8)));
                list.add(&format!("{version} udp, packet of {length}{df}{way}"), vec![packet]);
            }
        }
    }
    // What a frame carries behind the packet is not what has to fit.
    let flow = Flow::next(list, v6);
    let packet = if v6 {
        flow.udp(&payload(1460 - 48))
    } else {
        let header = Ipv4 { dont_fragment: true, ..flow.ipv4(UDP) };
        header.packet(&flow.datagram(&payload(1480 - 28)))
    };
    let name = format!("{version} udp, longest packet that fits, padded frame");
    list.add_sent(&name, vec![Sent { packet, trailer: 20 }]);
    let flow = Flow::next(list, v6);
    let mut data = flow.segment(flag::ACK);
    data.sequence = 1001;
    let upper = data.bytes(&payload(if v6 { 1440 } else { 1460 }));
    let packet = if v6 {
        flow.ipv6(TCP).packet(&upper)
    } else {
        Ipv4 { dont_fragment: true, ..flow.ipv4(TCP) }.packet(&upper)
    };
    let packets = vec![flow.tcp(flag::SYN, &[]), packet];
    list.add(&format!("{version} tcp connection, then a segment that does not fit"), packets);
}

/// Packets that no service is for.
fn elsewhere(list: &mut List, v6: bool, version: &str) {
    let other = |list: &List| {
        let flow = Flow::next(list, v6);
        let destination = SocketAddr::new(flow.destination.ip(), flow.destination.port() + 1);
        Flow { destination, ..flow }
    };
    let flow = other(list);
    list.add(&format!("{version} tcp to a port without service"), vec![flow.tcp(flag::SYN, &[])]);
    let flow = other(list);
    list.add(&format!("{version} udp to a port without service"), vec![flow.udp(&payload(8))]);
    for (name, protocol) in [("sctp", 132u8), ("gre", 47), ("an unassigned protocol", 200)] {
        let flow = Flow::next(list, v6);
        let packet = flow.packet(protocol, &payload(40));
        list.add(&format!("{version} {name} to a vip"), vec![packet]);
    }
}
