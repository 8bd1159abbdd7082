//! What a fragment says about its datagram.

use crate::dataplane::packet::{Address, Datagram, Family, protocol};

/// Least length of a TCP header (RFC 9293 §3.1).
const TCP_HEADER: usize = 20;
/// Length of a UDP header (RFC 768).
const UDP_HEADER: usize = 8;
/// Largest length of a reassembled payload: offsets and lengths that lead beyond are an attack
/// (the "ping of death").
const PAYLOAD_MAX: usize = 65_535;

/// What the fragments of one datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DatagramKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Identification.
    pub identification: u32,
    /// IPv4 protocol (RFC 791 §2.3); 0 for IPv6, where only the first fragment's next header counts
    /// and the others may differ (RFC 8200 §4.5).
    pub protocol: u8,
}

/// One fragment: of which datagram, and which part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its datagram.
    pub key: DatagramKey,
    /// Where its payload begins, in bytes.
    pub offset: u16,
    /// Bytes of payload.
    pub length: u16,
    /// Whether more fragments follow.
    pub more: bool,
}

/// Why a fragment is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PieceError {
    /// The transport header is not whole in the first fragment, or another fragment would overwrite
    /// it (RFC 1858 §3, RFC 3128, RFC 7112).
    #[error("transport header is split or overwritten")]
    Tiny,
    /// Not a multiple of 8 bytes although more follow, nothing in it, or beyond the largest packet.
    #[error("fragment lengths are impossible")]
    Malformed,
}

impl Piece {
    /// Reads the fragment that a datagram is; `None` when it is whole.
    ///
    /// # Errors
    /// [`PieceError`] when it is one that no honest host sends.
    pub fn of(datagram: &Datagram) -> Result<Option<Self>, PieceError> {
        let Some(fragment) = datagram.fragment else { return Ok(None) };
        let length = datagram.payload_len();
        let offset = usize::from(fragment.offset);
        let ragged = fragment.more && !length.is_multiple_of(8);
        if ragged || length == 0 || offset + length > PAYLOAD_MAX {
            return Err(PieceError::Malformed);
        }
        let header = match (datagram.family, datagram.protocol, offset) {
            // A later IPv6 fragment may lie about its protocol.
            (Family::V6, _, 1..) | (_, protocol::TCP, _) => TCP_HEADER,
            _ => UDP_HEADER,
        };
        let tiny = if offset == 0 { length < header } else { offset < header };
        if tiny {
            return Err(PieceError::Tiny);
        }
        let protocol = match datagram.family {
            Family::V4 => datagram.protocol,
            Family::V6 => 0,
        };
        let key = DatagramKey {
            source: datagram.source,
            destination: datagram.destination,
            identification: fragment.identification,
            protocol,
        };
        // Checked above to be below 65536.
        let length = u16::try_from(length).map_err(|_| PieceError::Malformed)?;
        Ok(Some(Self { key, offset: fragment.offset, length, more: fragment.more }))
    }

    /// Whether it is the first of its datagram, the one with the ports.
    pub const fn is_first(&self) -> bool {
        self.offset == 0
    }

    /// Payload of the whole datagram, if this piece tells (it is the last).
    pub(super) const fn total(&self) -> Option<u32> {
        if self.more { None } else { Some(self.offset as u32 + self.length as u32) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::packet::Fragment;

    fn datagram(family: Family, protocol: u8, offset: u16, length: usize, more: bool) -> Datagram {
        Datagram {
            family,
            source: [1; 16],
            destination: [2; 16],
            protocol,
            header_len: 20,
            total_len: 20 + length,
            hop_limit: 64,
            dont_fragment: false,
            fragment: Some(Fragment { identification: 7, offset, more }),
        }
    }

    #[test]
    fn pieces_are_checked() {
        use Family::{V4, V6};
        use PieceError::{Malformed, Tiny};
        let (tcp, udp) = (protocol::TCP, protocol::UDP);
        let table = [
            ("first", V4, udp, 0, 1480, true, Ok(())),
            ("last", V4, udp, 1480, 3, false, Ok(())),
            ("least first of UDP", V4, udp, 0, 8, true, Ok(())),
            ("second of UDP behind the least first", V4, udp, 8, 8, true, Ok(())),
            ("first of TCP without its flags (RFC 1858 3.1)", V4, tcp, 0, 8, true, Err(Tiny)),
            ("first of TCP without its urgent pointer", V4, tcp, 0, 16, true, Err(Tiny)),
            ("least first of TCP", V4, tcp, 0, 24, true, Ok(())),
            ("overwrites TCP flags (RFC 1858 3.2)", V4, tcp, 8, 1000, true, Err(Tiny)),
            ("overwrites TCP checksum", V4, tcp, 16, 1000, true, Err(Tiny)),
            ("overwrites behind a lie about the protocol", V6, udp, 8, 1000, true, Err(Tiny)),
            ("first of UDP over IPv6", V6, udp, 0, 8, true, Ok(())),
            ("ragged", V4, udp, 0, 1479, true, Err(Malformed)),
            ("empty", V4, udp, 1480, 0, false, Err(Malformed)),
            ("up to the largest packet", V4, udp, 65_528, 7, false, Ok(())),
            ("beyond the largest packet", V4, udp, 65_528, 8, false, Err(Malformed)),
        ];
        for (what, family, protocol, offset, length, more, expected) in table {
            let found = Piece::of(&datagram(family, protocol, offset, length, more));
            assert_eq!(found.map(|piece| assert!(piece.is_some())), expected, "{what}");
        }
    }

    #[test]
    fn ipv6_fragments_belong_together_whatever_their_next_header() {
        let key = |family, protocol| {
            Piece::of(&datagram(family, protocol, 1480, 100, false)).unwrap().unwrap().key
        };
        assert_eq!(key(Family::V6, protocol::TCP), key(Family::V6, protocol::UDP));
        assert_ne!(key(Family::V4, protocol::TCP), key(Family::V4, protocol::UDP));
        let whole = Datagram { fragment: None, ..datagram(Family::V4, protocol::UDP, 0, 9, false) };
        assert_eq!(Piece::of(&whole), Ok(None));
    }
}
