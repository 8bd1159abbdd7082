//! IPv4 options and IPv6 extension headers, put into packets that have none.

use etherparse::IpNumber;

use crate::checksums;

/// Extension headers that are put in, in turn; each takes eight bytes. Directors read through the
/// first [`READ_THROUGH`] and stop at the others.
const EXTENSIONS: [IpNumber; 6] = [
    IpNumber::IPV6_HEADER_HOP_BY_HOP,
    IpNumber::IPV6_DESTINATION_OPTIONS,
    IpNumber::IPV6_ROUTE_HEADER,
    IpNumber::IPV6_FRAGMENTATION_HEADER,
    IpNumber::AUTHENTICATION_HEADER,
    IpNumber::MOBILITY_HEADER,
];
const READ_THROUGH: usize = 4;
/// From this first one on, those that are read through follow each other alone.
const LONG_CHAIN: usize = 8;
/// Four bytes of options at a time, ten times at most (RFC 791 section 3.1).
const NO_OPERATION: [u8; 4] = [1; 4];
const MAX_OPTIONS: usize = 10;

/// Puts as many in as the lower half of `spec` says; the upper half says which comes first.
pub(super) fn insert(packet: &mut Vec<u8>, spec: u8) {
    let (first, count) = (usize::from(spec >> 4), usize::from(spec & 0x0f));
    match packet.first() {
        Some(0x45) => options(packet, count.min(MAX_OPTIONS)),
        Some(byte) if byte >> 4 == 6 => extensions(packet, first, count),
        _ => {}
    }
}

fn options(packet: &mut Vec<u8>, words: usize) {
    packet.splice(20..20, NO_OPERATION.repeat(words));
    packet[0] += u8::try_from(words).expect("ten at most");
    lengthen(packet, 2, 4 * words);
    let checksum = checksums::ipv4(packet);
    packet[10..12].copy_from_slice(&checksum);
}

fn extensions(packet: &mut Vec<u8>, first: usize, count: usize) {
    let upper = packet[6];
    let kinds = if first < LONG_CHAIN { &EXTENSIONS[..] } else { &EXTENSIONS[..READ_THROUGH] };
    let kind = |number: usize| kinds[(first + number) % kinds.len()].0;
    let next = |number: usize| if number + 1 == count { upper } else { kind(number + 1) };
    // Options are padded by four bytes; a fragment header with these bytes is none that is left.
    let chain = (0..count).flat_map(|number| {
        let padding =
            if kind(number) == IpNumber::IPV6_FRAGMENTATION_HEADER.0 { [0; 2] } else { [1, 4] };
        [next(number), 0, padding[0], padding[1], 0, 0, 0, 0]
    });
    let chain: Vec<u8> = chain.collect();
    if count > 0 {
        packet[6] = kind(0);
    }
    lengthen(packet, 4, chain.len());
    packet.splice(40..40, chain);
}

/// Adds to the length that stands at `at`.
fn lengthen(packet: &mut [u8], at: usize, by: usize) {
    let length = usize::from(u16::from_be_bytes([packet[at], packet[at + 1]])) + by;
    let length = u16::try_from(length).expect("sequences send small packets");
    packet[at..at + 2].copy_from_slice(&length.to_be_bytes());
}
