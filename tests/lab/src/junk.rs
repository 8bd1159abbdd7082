//! Frames that make no sense, or almost: seeded, so that a failure can be seen again.

use std::net::SocketAddr;

use crate::neighbour::{Mac, arp_request, solicitation};
use crate::packet::{Trouble, datagram, echo_request, encapsulate, fragments, icmp_error, syn};
use crate::realserver::SERVE_PORT;
use crate::serve::Pattern;
use crate::topology::{VIP, VIP6};
use etherparse::Ipv4Header;

/// A source of frames.
#[derive(Debug)]
pub struct Junk {
    random: Pattern,
    seeds: Vec<Vec<u8>>,
}

impl Junk {
    /// Frames to `destination`, made from valid ones of a client that nobody else uses.
    ///
    /// # Panics
    /// Never: the addresses are constants.
    #[must_use]
    pub fn new(seed: u64, destination: Mac) -> Self {
        let source = [0x02, 0, 0, 0, 0, 0x99];
        let mut packets: Vec<Vec<u8>> = Vec::new();
        for (client, vip, port) in [
            ("10.1.0.99:5000", VIP, SERVE_PORT),
            ("10.1.0.99:5001", VIP, 9),
            ("[fd00:1::99]:5000", VIP6, SERVE_PORT),
        ] {
            let client: SocketAddr = client.parse().expect("an address");
            let to = SocketAddr::new(vip, port);
            let reply = datagram(to, client, &[1; 64]);
            packets.extend([
                syn(client, to, 1),
                datagram(client, to, &[2; 200]),
                echo_request(client.ip(), vip, 1, &[3; 32]),
                icmp_error(client.ip(), vip, Trouble::TooBig(1300), &reply[..48]),
                icmp_error(client.ip(), vip, Trouble::HostUnreachable, &reply),
                encapsulate(client.ip(), vip, &reply),
            ]);
            packets.extend(fragments(&datagram(client, to, &[4; 3000]), 1280, 5));
        }
        let mut seeds: Vec<Vec<u8>> = packets
            .iter()
            .map(|packet| {
                let kind: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
                [&destination[..], &source, &kind, packet].concat()
            })
            .collect();
        let (std::net::IpAddr::V4(vip), std::net::IpAddr::V6(vip6)) = (VIP, VIP6) else {
            unreachable!("the lab has one of each")
        };
        seeds.push(arp_request(source, [10, 2, 0, 99].into(), vip));
        seeds.push(solicitation(source, "fd00:2::99".parse().expect("an address"), vip6));
        Self { random: Pattern::new(seed), seeds }
    }

    fn below(&mut self, limit: usize) -> usize {
        let mut bytes = [0; 4];
        self.random.fill(&mut bytes);
        u32::from_le_bytes(bytes) as usize % limit
    }

    /// The next frame: a few bytes changed, cut, made longer, or noise from the start; in IPv4
    /// often with a checksum that is right, so that more than the checksum is tried.
    pub fn next(&mut self, frame: &mut Vec<u8>) {
        frame.clear();
        let which = self.below(self.seeds.len() + 1);
        match self.seeds.get(which) {
            Some(seed) => frame.extend_from_slice(seed),
            None => {
                let length = 14 + self.below(200);
                frame.resize(length, 0);
                self.random.fill(frame);
                return;
            }
        }
        // The first 14 bytes stay in most frames, else the network would not bring them.
        let start = if self.below(16) == 0 { 0 } else { 14 };
        for _ in 0..self.below(5) {
            let at = start + self.below(frame.len().min(100) - start);
            let mut byte = [0];
            self.random.fill(&mut byte);
            frame[at] = byte[0];
        }
        match self.below(8) {
            0 => {
                let length = 14 + self.below(frame.len() - 13);
                frame.truncate(length);
            }
            1 => {
                let more = self.below(40);
                frame.resize((frame.len() + more).min(1514), 0xee);
            }
            _ => {}
        }
        if self.below(2) == 0 {
            mend_checksum(frame);
        }
    }
}

/// Puts the right checksum into an IPv4 header, if there is one.
fn mend_checksum(frame: &mut [u8]) {
    if frame.get(12..14) != Some(&[8, 0]) {
        return;
    }
    if let Ok((header, _)) = Ipv4Header::from_slice(&frame[14..]) {
        frame[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    }
}
