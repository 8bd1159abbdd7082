//! Strategies: packets built by etherparse, tunnels of both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use adit_tunnel::{Encapsulation, OuterFields, OuterTemplate};
use etherparse::{IpDscp, IpEcn, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6Header};
use proptest::collection::vec;
use proptest::prelude::*;

/// A wrapped packet is looked at in a buffer that has other things before and behind it.
pub(crate) const BEFORE: usize = 64;
pub(crate) const BEHIND: usize = 9;

/// An inner IPv4 packet with any header, options and up to `max_payload` bytes of payload.
pub(crate) fn ipv4_packet(max_payload: usize) -> impl Strategy<Value = Vec<u8>> {
    let header = (any::<[u8; 4]>(), any::<[u8; 4]>(), any::<u8>(), any::<u8>(), any::<u8>());
    let fragment = (any::<u16>(), any::<bool>(), any::<bool>(), 0..0x2000_u16);
    let options = vec(any::<[u8; 4]>(), 0..=10);
    (header, fragment, options, vec(any::<u8>(), 0..=max_payload)).prop_map(
        |((source, destination, ttl, protocol, class), fragment, options, payload)| {
            let (identification, dont_fragment, more_fragments, offset) = fragment;
            let options = options.concat();
            let mut header = Ipv4Header {
                dscp: IpDscp::try_new(class >> 2).unwrap(),
                ecn: IpEcn::try_new(class & 3).unwrap(),
                total_len: u16::try_from(20 + options.len() + payload.len()).unwrap(),
                identification,
                dont_fragment,
                more_fragments,
                fragment_offset: IpFragOffset::try_new(offset).unwrap(),
                time_to_live: ttl,
                protocol: IpNumber(protocol),
                header_checksum: 0,
                source,
                destination,
                options: Ipv4Options::try_from(options.as_slice()).unwrap(),
            };
            header.header_checksum = header.calc_header_checksum();
            [header.to_bytes().as_slice(), &payload].concat()
        },
    )
}

/// An inner IPv6 packet with any header and up to `max_payload` bytes behind it.
pub(crate) fn ipv6_packet(max_payload: usize) -> impl Strategy<Value = Vec<u8>> {
    let header = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u8>(), any::<u8>(), any::<u8>());
    (header, 0..1_u32 << 20, vec(any::<u8>(), 0..=max_payload)).prop_map(
        |((source, destination, hop_limit, next_header, traffic_class), label, payload)| {
            let header = Ipv6Header {
                traffic_class,
                flow_label: label.try_into().unwrap(),
                payload_length: u16::try_from(payload.len()).unwrap(),
                next_header: IpNumber(next_header),
                hop_limit,
                source,
                destination,
            };
            [&header.to_bytes()[..], &payload].concat()
        },
    )
}

/// An inner packet of either family.
pub(crate) fn packet(max_payload: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![ipv4_packet(max_payload), ipv6_packet(max_payload)]
}

/// Any kind of tunnel.
pub(crate) fn encapsulation() -> impl Strategy<Value = Encapsulation> {
    prop_oneof![
        Just(Encapsulation::Ipip),
        any::<bool>().prop_map(|checksum| Encapsulation::Gre { checksum }),
        any::<(u16, bool)>().prop_map(|(port, checksum)| Encapsulation::Gue { port, checksum }),
    ]
}

/// The port by which a receiver knows GUE.
pub(crate) fn gue_port(template: &OuterTemplate) -> Option<u16> {
    match template.encapsulation() {
        Encapsulation::Gue { port, .. } => Some(port),
        Encapsulation::Ipip | Encapsulation::Gre { .. } => None,
    }
}

/// A tunnel of any kind and either family.
pub(crate) fn template() -> impl Strategy<Value = OuterTemplate> {
    template_of(encapsulation())
}

/// A tunnel of these kinds and either family.
pub(crate) fn template_of(
    kinds: impl Strategy<Value = Encapsulation>,
) -> impl Strategy<Value = OuterTemplate> {
    let ends = prop_oneof![
        any::<(Ipv4Addr, Ipv4Addr)>().prop_map(|(a, b)| (IpAddr::V4(a), IpAddr::V4(b))),
        any::<(Ipv6Addr, Ipv6Addr)>().prop_map(|(a, b)| (IpAddr::V6(a), IpAddr::V6(b))),
    ];
    (kinds, ends, 1..=u8::MAX).prop_map(|(kind, (source, destination), hop_limit)| {
        OuterTemplate::with(kind, source, destination, hop_limit).unwrap()
    })
}

/// Any per-packet fields.
pub(crate) fn fields() -> impl Strategy<Value = OuterFields> {
    any::<(bool, u16, u32, u16)>().prop_map(
        |(dont_fragment, identification, flow_label, entropy)| OuterFields {
            dont_fragment,
            identification,
            flow_label,
            entropy,
        },
    )
}

/// Wraps `inner` and gives the outer packet alone.
pub(crate) fn wrap(template: &OuterTemplate, inner: &[u8], fields: OuterFields) -> Vec<u8> {
    let mut buffer = [&[0; BEFORE], inner].concat();
    let end = buffer.len();
    let start = template.encapsulate(&mut buffer, BEFORE..end, fields).unwrap();
    buffer.split_off(start)
}
