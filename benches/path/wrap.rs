//! What every contestant does to a packet: an outer IPv4 header in front of the inner one.

use std::ops::Range;

use crate::topology::{DIRECTOR, OUT_MAC, REAL, SINK_MAC, internet_checksum};

/// Room that wrapping needs in front of a received frame: the outer IP header takes the place of the
/// inner Ethernet header and 6 bytes more, an Ethernet header before it 14.
pub const ROOM: usize = 20;

/// What the packet is sent by, and so what it starts with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// AF_PACKET: an Ethernet header.
    Packet,
    /// A raw IP socket: the outer IP header.
    Raw,
}

/// Headers made once; only the length and the checksum differ from packet to packet.
pub struct Wrapper {
    headers: [u8; 34],
    exit: Exit,
}

impl Wrapper {
    pub fn new(exit: Exit) -> Self {
        let mut headers = [0; 34];
        headers[..6].copy_from_slice(&SINK_MAC);
        headers[6..12].copy_from_slice(&OUT_MAC);
        headers[12..14].copy_from_slice(&[0x08, 0x00]);
        headers[14] = 0x45;
        headers[18] = 1; // identification: not 0, else a raw socket chooses one
        headers[22] = 64; // TTL
        headers[23] = 4; // IP in IP
        headers[26..30].copy_from_slice(&DIRECTOR);
        headers[30..34].copy_from_slice(&REAL);
        Self { headers, exit }
    }

    /// Wraps the IP packet in the Ethernet frame at `frame`; the bytes to send. `None` when it is not
    /// IPv4 and so not of the bench.
    pub fn wrap(&self, slot: &mut [u8], frame: Range<usize>) -> Option<Range<usize>> {
        if slot.get(frame.start + 12..frame.start + 14)? != [0x08, 0x00] {
            return None;
        }
        let inner = frame.start + 14;
        let outer = inner - 20;
        let length = u16::try_from(frame.end - outer).ok()?;
        slot[outer - 14..inner].copy_from_slice(&self.headers);
        slot[outer + 2..outer + 4].copy_from_slice(&length.to_be_bytes());
        let checksum = internet_checksum(&slot[outer..inner]);
        slot[outer + 10..outer + 12].copy_from_slice(&checksum);
        Some(match self.exit {
            Exit::Packet => outer - 14..frame.end,
            Exit::Raw => outer..frame.end,
        })
    }
}
