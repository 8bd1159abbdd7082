//! Packets for tests, written and read by etherparse: it shares no code with the core.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, NetSlice, PacketBuilder,
    PacketBuilderStep, SlicedPacket, TransportSlice,
};

/// Traffic class of sample packets: DSCP 46 and ECT(0).
pub(super) const CLASS: u8 = 46 << 2 | 2;

/// An IP header that a transport can be put behind.
pub(super) fn ip(
    source: IpAddr,
    destination: IpAddr,
    hop_limit: u8,
) -> PacketBuilderStep<IpHeaders> {
    PacketBuilder::ip(match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let number = IpNumber::TCP; // the builder knows better
            let octets = (source.octets(), destination.octets());
            let mut header = Ipv4Header::new(0, hop_limit, number, octets.0, octets.1).unwrap();
            header.dscp = (CLASS >> 2).try_into().unwrap();
            header.ecn = (CLASS & 3).try_into().unwrap();
            header.identification = 0x1234;
            header.dont_fragment = true;
            IpHeaders::Ipv4(header, Default::default())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => IpHeaders::Ipv6(
            Ipv6Header {
                traffic_class: CLASS,
                flow_label: Ipv6FlowLabel::try_new(0xabcde).unwrap(),
                payload_length: 0,
                next_header: IpNumber::TCP,
                hop_limit,
                source: source.octets(),
                destination: destination.octets(),
            },
            Default::default(),
        ),
        _ => panic!("{source} and {destination} are of two families"),
    })
}

/// An ICMP message of the family of its addresses. `rest` is the second half of its header.
pub(super) fn icmp(
    source: IpAddr,
    destination: IpAddr,
    (kind, code): (u8, u8),
    rest: [u8; 4],
    body: &[u8],
) -> Vec<u8> {
    icmp_from(64, source, destination, (kind, code), rest, body)
}

/// The same, with another hop limit.
pub(super) fn icmp_from(
    hop_limit: u8,
    source: IpAddr,
    destination: IpAddr,
    (kind, code): (u8, u8),
    rest: [u8; 4],
    body: &[u8],
) -> Vec<u8> {
    let mut packet = Vec::new();
    let ip = ip(source, destination, hop_limit);
    if source.is_ipv4() {
        ip.icmpv4_raw(kind, code, rest).write(&mut packet, body).unwrap();
    } else {
        ip.icmpv6_raw(kind, code, rest).write(&mut packet, body).unwrap();
    }
    packet
}

/// A TCP segment with ACK set.
pub(super) fn tcp(
    source: SocketAddr,
    destination: SocketAddr,
    sequence: u32,
    acknowledgement: u32,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = Vec::new();
    ip(source.ip(), destination.ip(), 64)
        .tcp(source.port(), destination.port(), sequence, 1000)
        .ack(acknowledgement)
        .write(&mut packet, payload)
        .unwrap();
    packet
}

/// A UDP datagram.
pub(super) fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    ip(source.ip(), destination.ip(), 64)
        .udp(source.port(), destination.port())
        .write(&mut packet, payload)
        .unwrap();
    packet
}

/// A slot of 2 kB full of rubbish with `packet` in it, and where that is.
pub(super) fn in_slot(packet: &[u8]) -> (Vec<u8>, Range<usize>) {
    let mut slot = vec![0xa5; 128 + packet.len().max(1900)];
    let range = 128..128 + packet.len();
    slot[range.clone()].copy_from_slice(packet);
    (slot, range)
}

/// A packet that Adit wrote, as etherparse reads it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Emitted<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) class: u8,
    pub(super) hop_limit: u8,
    /// DF and identification of IPv4.
    pub(super) dont_fragment: Option<(bool, u16)>,
    /// The transport header and what is behind it.
    pub(super) transport: &'a [u8],
}

impl<'a> Emitted<'a> {
    /// Reads a whole packet; panics unless lengths and checksums are right.
    pub(super) fn read(packet: &'a [u8]) -> Self {
        let sliced = SlicedPacket::from_ip(packet).expect("a packet");
        let emitted = match sliced.net.as_ref().expect("an IP header") {
            NetSlice::Ipv4(slice) => {
                let header = slice.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                assert_eq!(usize::from(header.total_len), packet.len());
                Self {
                    source: header.source.into(),
                    destination: header.destination.into(),
                    class: header.dscp.value() << 2 | header.ecn.value(),
                    hop_limit: header.time_to_live,
                    dont_fragment: Some((header.dont_fragment, header.identification)),
                    transport: slice.payload().payload,
                }
            }
            NetSlice::Ipv6(slice) => {
                let header = slice.header().to_header();
                assert_eq!(usize::from(header.payload_length) + 40, packet.len());
                Self {
                    source: header.source.into(),
                    destination: header.destination.into(),
                    class: header.traffic_class,
                    hop_limit: header.hop_limit,
                    dont_fragment: None,
                    transport: slice.payload().payload,
                }
            }
            NetSlice::Arp(_) => panic!("no IP packet"),
        };
        emitted.assert_checksum(sliced.transport.as_ref().expect("a transport"));
        emitted
    }

    fn assert_checksum(&self, transport: &TransportSlice<'_>) {
        match (transport, self.source, self.destination) {
            (TransportSlice::Icmpv4(icmp), IpAddr::V4(_), _) => {
                assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()));
            }
            (TransportSlice::Icmpv6(icmp), IpAddr::V6(source), IpAddr::V6(destination)) => {
                assert!(icmp.is_checksum_valid(source.octets(), destination.octets()));
            }
            (TransportSlice::Tcp(tcp), IpAddr::V4(source), IpAddr::V4(destination)) => {
                let sum = tcp.calc_checksum_ipv4(source.octets(), destination.octets());
                assert_eq!(tcp.checksum(), sum.unwrap());
            }
            (TransportSlice::Tcp(tcp), IpAddr::V6(source), IpAddr::V6(destination)) => {
                let sum = tcp.calc_checksum_ipv6(source.octets(), destination.octets());
                assert_eq!(tcp.checksum(), sum.unwrap());
            }
            (TransportSlice::Udp(_) | TransportSlice::Tcp(_), ..)
            | (TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_), ..) => {
                panic!("Adit does not send {transport:?}")
            }
        }
    }
}
