//! A packet cut off anywhere is refused, with the layer that is short and by how much.

use adit_tunnel::fragment::{FragmentError, plan};
use adit_tunnel::{
    DecapError, EncapError, Encapsulation, HeaderError, HopLimitError, Layer, LenError,
    OuterFields, decapsulate, decrement_hop_limit,
};
use proptest::prelude::*;

use crate::packets::{packet, template, template_of, wrap};

fn length(layer: Layer, needed: usize, actual: usize) -> HeaderError {
    HeaderError::Length(LenError { layer, needed, actual })
}

/// What is wrong with the first `actual` bytes of a packet whose header is fine.
fn expected(actual: usize, layers: [Layer; 2], header: usize, whole: usize) -> HeaderError {
    match actual {
        0 => length(layers[0], 1, 0),
        _ if actual < header => length(layers[1], header, actual),
        _ => length(layers[1], whole, actual),
    }
}

fn inner_layers(packet: &[u8]) -> ([Layer; 2], usize) {
    if packet[0] >> 4 == 4 {
        ([Layer::Inner, Layer::InnerIpv4], 20)
    } else {
        ([Layer::Inner, Layer::InnerIpv6], 40)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_outer_packet_cut_off_anywhere(inner in packet(80), template in template()) {
        let outer = wrap(&template, &inner, OuterFields::default());
        let layer = if template.is_ipv4() { Layer::OuterIpv4 } else { Layer::OuterIpv6 };
        let header = template.overhead() - template.encapsulation().len();
        for actual in 0..outer.len() {
            let expected = expected(actual, [Layer::Outer, layer], header, outer.len());
            prop_assert_eq!(decapsulate(&outer[..actual]), Err(DecapError::Header(expected)));
            prop_assert_eq!(
                plan(&outer[..actual], 1500).unwrap_err(),
                FragmentError::Header(expected)
            );
        }
    }

    /// The outer header is whole and honest; what it carries is not.
    #[test]
    fn an_inner_packet_cut_off_anywhere(
        inner in packet(80),
        template in template_of(Just(Encapsulation::Ipip)),
    ) {
        let outer = wrap(&template, &inner, OuterFields::default());
        let ([_, layer], header) = inner_layers(&inner);
        for actual in 0..inner.len() {
            let mut cut = outer[..template.overhead() + actual].to_vec();
            declare(&mut cut);
            let needed = if actual < header { header } else { inner.len() };
            prop_assert_eq!(
                decapsulate(&cut),
                Err(DecapError::Header(length(layer, needed, actual)))
            );
        }
    }

    #[test]
    fn nothing_cut_off_is_wrapped(inner in packet(80), template in template()) {
        let (layers, header) = inner_layers(&inner);
        for actual in 0..inner.len() {
            let mut buffer = [&[0; 40], &inner[..]].concat();
            let before = buffer.clone();
            let expected = expected(actual, layers, header, inner.len());
            prop_assert_eq!(
                template.encapsulate(&mut buffer, 40..40 + actual, OuterFields::default()),
                Err(EncapError::Inner(expected))
            );
            prop_assert_eq!(buffer, before);
        }
    }

    #[test]
    fn no_header_cut_off_is_decremented(mut inner in packet(0)) {
        let (layers, header) = inner_layers(&inner);
        for actual in 0..header {
            let before = inner.clone();
            let expected = expected(actual, layers, header, header);
            prop_assert_eq!(
                decrement_hop_limit(&mut inner[..actual]),
                Err(HopLimitError::Header(expected))
            );
            prop_assert_eq!(&inner, &before);
        }
    }

    #[test]
    fn headroom_is_needed(inner in packet(80), template in template()) {
        for actual in 0..template.overhead() {
            let mut buffer = [&[0; 64][..actual], &inner[..]].concat();
            let before = buffer.clone();
            let end = buffer.len();
            prop_assert_eq!(
                template.encapsulate(&mut buffer, actual..end, OuterFields::default()),
                Err(EncapError::Headroom { needed: template.overhead(), actual })
            );
            prop_assert_eq!(buffer, before);
        }
    }
}

/// Makes an outer header say the length that its packet has.
fn declare(packet: &mut [u8]) {
    let length = packet.len();
    if packet[0] >> 4 == 4 {
        packet[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        let sum = adit_tunnel::checksum::ipv4_header_checksum(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet[4..6].copy_from_slice(&u16::try_from(length - 40).unwrap().to_be_bytes());
    }
}
