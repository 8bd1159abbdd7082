//! Explicit congestion notification through a tunnel (RFC 6040, normal mode).
//!
//! On the way in the field is copied to the outer header. On the way out the two are joined by the
//! table of RFC 6040 §4.2: a router inside the tunnel that marked the outer header has told the
//! receiver something that must not be lost, and a mark on a flow that cannot hear it is a loss.

use crate::checksum;
use crate::error::HeaderError;
use crate::header::{IPV4_HEADER_LEN, IpView, Side, ipv4, read_u16, write_u16};

/// The low two bits of IPv4's TOS byte and of IPv6's traffic class (RFC 3168).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Ecn {
    /// The endpoints do not use congestion notification.
    NotEct = 0b00,
    /// ECN-capable transport, codepoint 1.
    Ect1 = 0b01,
    /// ECN-capable transport, codepoint 0.
    Ect0 = 0b10,
    /// Congestion experienced.
    Ce = 0b11,
}

impl Ecn {
    /// The codepoint in a TOS byte or traffic class.
    #[inline]
    #[must_use]
    pub const fn of(traffic_class: u8) -> Self {
        match traffic_class & 0b11 {
            0b00 => Self::NotEct,
            0b01 => Self::Ect1,
            0b10 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// The codepoint's two bits.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u8 {
        self as u8
    }
}

/// How unexpected a combination of inner and outer codepoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alarm {
    /// An ordinary combination.
    None,
    /// No tunnel entry of today produces it: worth a counter ("(!)" in RFC 6040, figure 4).
    Unused,
    /// Something on the path breaks the field: worth an operator's look ("(!!!)" there).
    Dangerous,
}

/// What the tunnel's exit does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// Pass it on with this codepoint in the inner header.
    Forward(Ecn, Alarm),
    /// Drop it: congestion was marked on a flow that only understands loss.
    Drop,
}

/// Traffic class of the outer header for an inner one: DSCP copied (the tunnel is one
/// differentiated-services domain, RFC 2983 uniform model), ECN copied (RFC 6040 §4.1).
#[inline]
#[must_use]
pub const fn outer_traffic_class(inner: u8) -> u8 {
    inner
}

/// Joins the codepoints of inner and outer header at the tunnel's exit (RFC 6040 §4.2, figure 4).
#[must_use]
pub const fn exit(inner: Ecn, outer: Ecn) -> Exit {
    use Alarm::{Dangerous, None, Unused};
    match (inner, outer) {
        (Ecn::NotEct, Ecn::NotEct) => Exit::Forward(Ecn::NotEct, None),
        (Ecn::NotEct, Ecn::Ect0 | Ecn::Ect1) => Exit::Forward(Ecn::NotEct, Dangerous),
        (Ecn::NotEct, Ecn::Ce) => Exit::Drop,
        (Ecn::Ect0, Ecn::NotEct | Ecn::Ect0) => Exit::Forward(Ecn::Ect0, None),
        (Ecn::Ect0, Ecn::Ect1) => Exit::Forward(Ecn::Ect1, None),
        (Ecn::Ect1, Ecn::NotEct | Ecn::Ect1) => Exit::Forward(Ecn::Ect1, None),
        (Ecn::Ect1, Ecn::Ect0) => Exit::Forward(Ecn::Ect1, Unused),
        (Ecn::Ce, Ecn::NotEct | Ecn::Ect0 | Ecn::Ce) => Exit::Forward(Ecn::Ce, None),
        (Ecn::Ce, Ecn::Ect1) => Exit::Forward(Ecn::Ce, Dangerous),
        (Ecn::Ect0 | Ecn::Ect1, Ecn::Ce) => Exit::Forward(Ecn::Ce, None),
    }
}

/// Writes a codepoint into the IP header at the start of `packet`, patching IPv4's checksum.
///
/// # Errors
/// The header is not a whole IPv4 or IPv6 header; then nothing is changed.
pub fn set(packet: &mut [u8], ecn: Ecn) -> Result<(), HeaderError> {
    match IpView::new(packet, Side::Inner)? {
        IpView::V4 { .. } => {
            let header =
                packet.first_chunk_mut::<IPV4_HEADER_LEN>().expect("the view has checked it");
            let old = read_u16(header, 0);
            header[ipv4::TRAFFIC_CLASS] = header[ipv4::TRAFFIC_CLASS] & !0b11 | ecn.bits();
            let sum =
                checksum::update_u16(read_u16(header, ipv4::CHECKSUM), old, read_u16(header, 0));
            write_u16(header, ipv4::CHECKSUM, sum);
        }
        IpView::V6 { .. } => packet[1] = packet[1] & !0b0011_0000 | ecn.bits() << 4,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Layer;
    use crate::error::LenError;

    /// RFC 6040, figure 4, row by row: inner codepoint, then the result for an outer Not-ECT,
    /// ECT(0), ECT(1) and CE.
    #[test]
    fn the_exit_follows_figure_4() {
        use Alarm::{Dangerous, None as Quiet, Unused};
        use Ecn::{Ce, Ect0, Ect1, NotEct};
        use Exit::{Drop, Forward};
        let outer = [NotEct, Ect0, Ect1, Ce];
        let rows = [
            (
                NotEct,
                [
                    Forward(NotEct, Quiet),
                    Forward(NotEct, Dangerous),
                    Forward(NotEct, Dangerous),
                    Drop,
                ],
            ),
            (
                Ect0,
                [
                    Forward(Ect0, Quiet),
                    Forward(Ect0, Quiet),
                    Forward(Ect1, Quiet),
                    Forward(Ce, Quiet),
                ],
            ),
            (
                Ect1,
                [
                    Forward(Ect1, Quiet),
                    Forward(Ect1, Unused),
                    Forward(Ect1, Quiet),
                    Forward(Ce, Quiet),
                ],
            ),
            (
                Ce,
                [
                    Forward(Ce, Quiet),
                    Forward(Ce, Quiet),
                    Forward(Ce, Dangerous),
                    Forward(Ce, Quiet),
                ],
            ),
        ];
        for (inner, row) in rows {
            for (outer, expected) in outer.into_iter().zip(row) {
                assert_eq!(exit(inner, outer), expected, "inner {inner:?}, outer {outer:?}");
            }
        }
    }

    #[test]
    fn codepoints_are_the_two_low_bits() {
        for class in 0..=u8::MAX {
            assert_eq!(Ecn::of(class).bits(), class & 3);
        }
        assert_eq!([Ecn::of(1), Ecn::of(2)], [Ecn::Ect1, Ecn::Ect0]);
    }

    #[test]
    fn the_entry_copies_dscp_and_ecn() {
        for class in 0..=u8::MAX {
            assert_eq!(outer_traffic_class(class), class);
        }
    }

    #[test]
    fn no_codepoint_is_written_into_what_is_no_packet() {
        let mut short = [0x45; 19];
        assert_eq!(
            set(&mut short, Ecn::Ce),
            Err(LenError { layer: Layer::InnerIpv4, needed: 20, actual: 19 }.into())
        );
        assert_eq!(short, [0x45; 19]);
    }
}
