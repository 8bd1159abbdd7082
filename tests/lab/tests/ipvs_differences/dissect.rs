//! A packet as a list of named fields, so that two can be compared without knowing what they are.

use std::fmt::Write as _;

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice};

/// Names and values, in the packet's order.
pub(crate) type Fields = Vec<(String, String)>;

/// All fields of a frame from its IP header on.
pub(crate) fn frame(bytes: &[u8]) -> Fields {
    let mut fields = Fields::new();
    let packet = &bytes[14..];
    let length = ip(&mut fields, "", packet, true);
    fields.push(("trailer".into(), hex(&packet[length.min(packet.len())..])));
    fields
}

/// Adds the fields of an IP packet, and returns the length that it says it has.
fn ip(fields: &mut Fields, prefix: &str, packet: &[u8], whole: bool) -> usize {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => ipv4(fields, prefix, packet, whole),
        Some(6) => ipv6(fields, prefix, packet, whole),
        _ => {
            fields.push((format!("{prefix}bytes"), hex(packet)));
            packet.len()
        }
    }
}

fn ipv4(fields: &mut Fields, prefix: &str, packet: &[u8], whole: bool) -> usize {
    let mut add = |name: &str, value: String| fields.push((format!("{prefix}{name}"), value));
    let Ok(header) = Ipv4HeaderSlice::from_slice(packet) else {
        add("bytes", hex(packet));
        return packet.len();
    };
    let full = header.to_header();
    let right = full.calc_header_checksum() == full.header_checksum;
    add("version", "4".into());
    add("dscp", full.dscp.value().to_string());
    add("ecn", full.ecn.value().to_string());
    add("length", full.total_len.to_string());
    add("identification", format!("{:#06x}", full.identification));
    add("df", u8::from(full.dont_fragment).to_string());
    add("reserved flag", (packet[6] >> 7).to_string());
    add("mf", u8::from(full.more_fragments).to_string());
    add("offset", full.fragment_offset.byte_offset().to_string());
    add("ttl", full.time_to_live.to_string());
    add("protocol", full.protocol.0.to_string());
    add("header checksum", if right { "right" } else { "wrong" }.into());
    add("source", header.source_addr().to_string());
    add("destination", header.destination_addr().to_string());
    add("options", hex(header.options()));
    let length = usize::from(full.total_len);
    let end = length.clamp(header.slice().len(), packet.len().max(header.slice().len()));
    let payload = &packet[header.slice().len()..end];
    let begins = full.fragment_offset.value() == 0;
    upper(fields, prefix, full.protocol.0, payload, begins, whole);
    length
}

fn ipv6(fields: &mut Fields, prefix: &str, packet: &[u8], whole: bool) -> usize {
    let mut add = |name: &str, value: String| fields.push((format!("{prefix}{name}"), value));
    let Ok(header) = Ipv6HeaderSlice::from_slice(packet) else {
        add("bytes", hex(packet));
        return packet.len();
    };
    add("version", "6".into());
    add("dscp", (header.traffic_class() >> 2).to_string());
    add("ecn", (header.traffic_class() & 3).to_string());
    add("flow label", format!("{:#x}", header.flow_label().value()));
    add("length", header.payload_length().to_string());
    add("next header", header.next_header().0.to_string());
    add("hop limit", header.hop_limit().to_string());
    add("source", header.source_addr().to_string());
    add("destination", header.destination_addr().to_string());
    let length = 40 + usize::from(header.payload_length());
    let mut payload = &packet[40..length.min(packet.len())];
    let mut next = header.next_header().0;
    let mut begins = true;
    // Only the outer header's own fragments: what a client put behind its header is its payload.
    if next == 44 && prefix.is_empty() && payload.len() >= 8 {
        let field = u16::from_be_bytes([payload[2], payload[3]]);
        add("fragment identification", hex(&payload[4..8]));
        add("mf", (field & 1).to_string());
        add("offset", (field & 0xfff8).to_string());
        begins = field & 0xfff8 == 0;
        next = payload[0];
        add("behind the fragment header", next.to_string());
        payload = &payload[8..];
    }
    upper(fields, prefix, next, payload, begins, whole);
    length
}

fn upper(
    fields: &mut Fields,
    prefix: &str,
    protocol: u8,
    payload: &[u8],
    begins: bool,
    whole: bool,
) {
    match protocol {
        // Only in the outer header: nobody sends us tunnels in tunnels.
        4 | 41 if begins && prefix.is_empty() => {
            ip(fields, "inner ", payload, true);
        }
        1 | 58 if begins && whole && prefix.is_empty() && payload.len() >= 8 => {
            let kind = (payload[0], payload[1]);
            let mut add = |name: &str, value: String| fields.push((name.into(), value));
            add("icmp type", kind.0.to_string());
            add("icmp code", kind.1.to_string());
            add("icmp rest", hex(&payload[4..8]));
            let error =
                if protocol == 1 { matches!(kind.0, 3 | 4 | 5 | 11 | 12) } else { kind.0 < 128 };
            if error {
                add("quoted bytes", (payload.len() - 8).to_string());
                ip(fields, "quoted ", &payload[8..], false);
            } else {
                add("icmp body", hex(&payload[8..]));
            }
        }
        _ => fields.push((format!("{prefix}payload"), hex(payload))),
    }
}

/// Hexadecimal digits; of something long, its length and a hash of it all.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digits = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    if bytes.len() <= 48 {
        return digits(bytes);
    }
    // FNV-1a, so that whatever differs is seen.
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{} bytes, {}…, hash {hash:016x}", bytes.len(), digits(&bytes[..16]))
}
