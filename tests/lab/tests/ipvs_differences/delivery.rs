//! What a real server's transport gets, whatever way the packets took: tunnels unwrapped, outer and
//! inner fragments put together.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use adit_lab::packet::IpPacket;

use crate::dissect::hex;

/// A datagram without what routers may change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Delivered {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload: Vec<u8>,
}

impl fmt::Display for Delivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination, protocol, payload } = self;
        write!(f, "{source} > {destination} protocol {protocol}: {}", hex(payload))
    }
}

/// Datagrams that arrive whole, in no order, each once.
pub(crate) fn delivered(frames: &[Vec<u8>]) -> Vec<Delivered> {
    let outer = frames.iter().filter_map(|frame| IpPacket::from_ethernet(frame));
    let inner = join(outer)
        .into_iter()
        .filter(|whole| matches!(whole.protocol, 4 | 41))
        .filter_map(|whole| IpPacket::from_ip(&whole.payload));
    let mut all = join(inner);
    all.sort();
    all.dedup();
    all
}

/// Puts fragments together; what is incomplete is lost.
fn join(packets: impl Iterator<Item = IpPacket>) -> Vec<Delivered> {
    let mut whole = Vec::new();
    let mut pieces: BTreeMap<_, BTreeMap<u16, IpPacket>> = BTreeMap::new();
    for packet in packets {
        if packet.fragment == (0, false) {
            whole.push(datagram(&packet, packet.payload.clone()));
        } else {
            let key = (packet.source, packet.destination, packet.protocol, packet.identification);
            pieces.entry(key).or_default().insert(packet.fragment.0, packet);
        }
    }
    for pieces in pieces.into_values() {
        let mut payload = Vec::new();
        let mut complete = false;
        for (offset, piece) in &pieces {
            if usize::from(*offset) != payload.len() {
                complete = false;
                break;
            }
            payload.extend_from_slice(&piece.payload);
            complete = !piece.fragment.1;
        }
        if let (true, Some(first)) = (complete, pieces.values().next()) {
            whole.push(datagram(first, payload));
        }
    }
    whole
}

fn datagram(packet: &IpPacket, payload: Vec<u8>) -> Delivered {
    Delivered {
        source: packet.source,
        destination: packet.destination,
        protocol: packet.protocol,
        payload,
    }
}
