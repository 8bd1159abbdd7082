//! Checksums over bytes as they are, by etherparse's sums. (Its header types forget the reserved
//! flag of IPv4, so their checksums are right only without it.)

use etherparse::{IpNumber, Ipv4Header, Ipv6Header, checksum::Sum16BitWords};

/// Whether the IPv4 header at the start of `packet` is intact.
pub(crate) fn ipv4_is_intact(packet: &[u8]) -> bool {
    Sum16BitWords::new().add_slice(ipv4_header(packet)).ones_complement() == 0
}

/// The checksum that the IPv4 header at the start of `packet` should hold.
pub(crate) fn ipv4(packet: &[u8]) -> [u8; 2] {
    let mut header = ipv4_header(packet).to_vec();
    header[10..12].fill(0);
    // The sum is in the machine's byte order.
    Sum16BitWords::new().add_slice(&header).ones_complement().to_ne_bytes()
}

fn ipv4_header(packet: &[u8]) -> &[u8] {
    &packet[..4 * usize::from(packet[0] & 0x0f)]
}

/// Makes the checksum of an IPv4 header, and of the ICMP or ICMPv6 message behind a plain IP
/// header, right, as a fuzzer cannot guess them. What is no packet stays as it is.
pub(crate) fn repair(packet: &mut [u8]) {
    if let Ok((header, _)) = Ipv4Header::from_slice(packet) {
        let checksum = ipv4(packet);
        packet[10..12].copy_from_slice(&checksum);
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
        }
    }
}

fn icmp(message: &mut [u8], pseudo_header: Sum16BitWords) {
    if message.len() >= 4 {
        message[2..4].fill(0);
        let checksum = pseudo_header.add_slice(message).ones_complement();
        message[2..4].copy_from_slice(&checksum.to_ne_bytes());
    }
}
