//! Checksums, which a fuzzer cannot guess, made right by etherparse.

use etherparse::{Icmpv6Slice, IpNumber, Ipv4Header, Ipv6Header, checksum::Sum16BitWords};

/// Makes the checksum of an IPv4 header, and of the ICMP or ICMPv6 message behind a plain IP
/// header, right. What is no packet stays as it is.
pub(crate) fn with_checksums(packet: &mut [u8]) {
    if let Ok((header, _)) = Ipv4Header::from_slice(packet) {
        packet[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
        let length = usize::from(header.total_len);
        if header.protocol == IpNumber::ICMP
            && let Some(message) = packet.get_mut(header.header_len()..length)
        {
            icmp(message, Sum16BitWords::new());
        }
    } else if let Ok((header, _)) = Ipv6Header::from_slice(packet) {
        let length = header.payload_length;
        if header.next_header == IpNumber::IPV6_ICMP
            && let Some(message) = packet.get_mut(40..40 + usize::from(length))
        {
            let pseudo_header = Sum16BitWords::new()
                .add_16bytes(header.source)
                .add_16bytes(header.destination)
                .add_2bytes(length.to_be_bytes())
                .add_2bytes([0, IpNumber::IPV6_ICMP.0]);
            icmp(message, pseudo_header);
            debug_assert!(
                Icmpv6Slice::from_slice(message).is_err()
                    || Icmpv6Slice::from_slice(message)
                        .is_ok_and(|it| it.is_checksum_valid(header.source, header.destination))
            );
        }
    }
}

fn icmp(message: &mut [u8], pseudo_header: Sum16BitWords) {
    if message.len() >= 4 {
        message[2..4].fill(0);
        // etherparse sums words in the machine's byte order.
        let checksum = pseudo_header.add_slice(message).ones_complement();
        message[2..4].copy_from_slice(&checksum.to_ne_bytes());
    }
}
