//! The network of one measurement: everything in a namespace of the calling thread, so that it is
//! gone with it.
//!
//! ```text
//! generator ─▶ in ─(routing)─▶ TAP ─▶ director ─▶ out ─(veth)─▶ sink
//! ```

use std::process::Command;

use adit::io::{Tap, TapConfig, interface_index};
use anyhow::{Context, Result, ensure};

/// Where clients send to.
pub const VIP: [u8; 4] = [198, 51, 100, 10];
/// The director's address on the way out.
pub const DIRECTOR: [u8; 4] = [10, 0, 0, 1];
/// The real server.
pub const REAL: [u8; 4] = [10, 0, 0, 2];
pub const IN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const OUT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
pub const SINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 4];
pub const TAP_NAME: &str = "bench0";

/// What a contestant works with.
pub struct Topology {
    /// Index of the interface that packets arrive on.
    pub incoming: u32,
    /// Index of its other end, where nothing is ever received.
    pub idle: u32,
    /// Index of the other end of the interface towards the real server.
    pub sink: u32,
}

/// A 64-byte UDP packet to the VIP (without the FCS), TTL 64. The source port is the generator's.
pub fn client_frame() -> [u8; 64] {
    let mut frame = [0; 64];
    frame[..6].copy_from_slice(&IN_MAC);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let ip = &mut frame[14..34];
    ip[0] = 0x45;
    ip[3] = 50; // total length
    ip[8] = 64; // TTL
    ip[9] = 17; // UDP
    ip[12..16].copy_from_slice(&[192, 0, 2, 7]);
    ip[16..20].copy_from_slice(&VIP);
    let checksum = internet_checksum(ip);
    frame[24..26].copy_from_slice(&checksum);
    frame[36..38].copy_from_slice(&5432u16.to_be_bytes());
    frame[39] = 30; // UDP length; checksum 0: none
    frame
}

/// The same with a TCP SYN that brings 10 bytes of data, so that it is as long: the first packet of a
/// connection. Source port, identification and the lower half of the source address are the
/// generator's: 0xffff and 0 here, which add up to what they do there. The TCP checksum is none.
pub fn syn_frame() -> [u8; 64] {
    let mut frame = client_frame();
    frame[14 + 9] = 6; // TCP
    frame[18..20].copy_from_slice(&[0xff, 0xff]);
    frame[24..30].copy_from_slice(&[0, 0, 10, 77, 0, 0]);
    let checksum = internet_checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&checksum);
    frame[36..38].copy_from_slice(&5432u16.to_be_bytes());
    frame[38..42].copy_from_slice(&1u32.to_be_bytes());
    frame[46] = 5 << 4; // length of the TCP header
    frame[47] = 0x02; // SYN
    frame[48..50].copy_from_slice(&64_000u16.to_be_bytes());
    frame
}

/// RFC 1071, of a header whose checksum field is zero.
pub fn internet_checksum(bytes: &[u8]) -> [u8; 2] {
    let (words, _) = bytes.as_chunks::<2>();
    let mut sum: u32 = words.iter().map(|&word| u32::from(u16::from_be_bytes(word))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = (!sum).to_be_bytes();
    [high, low]
}

impl Topology {
    /// Builds it in the (empty) namespace of the calling thread.
    pub fn build() -> Result<Self> {
        for command in [
            // IPv6 would add packets of its own to the counts.
            "sysctl -qw net.ipv6.conf.default.disable_ipv6=1 net.ipv6.conf.all.disable_ipv6=1",
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0",
            "sysctl -qw net.ipv4.conf.default.rp_filter=0",
            "ip link set lo up",
            "ip link add in address 02:00:00:00:00:01 type veth peer name in-peer",
            "ip link add out address 02:00:00:00:00:03 type veth peer name sink address 02:00:00:00:00:04",
            // NAPI: what the generator needs to hand packets to the stack.
            "ethtool -K in gro on",
            "ip link set in up",
            "ip link set in-peer up",
            "ip link set out up",
            "ip link set sink up",
            "ip address add 192.0.2.1/24 dev in",
            "ip address add 10.0.0.1/24 dev out",
            "ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:04 dev out nud permanent",
        ] {
            run(command)?;
        }
        Ok(Self {
            incoming: interface_index("in")?,
            idle: interface_index("in-peer")?,
            sink: interface_index("sink")?,
        })
    }

    /// Opens a TAP and routes the VIP to it; each contestant gets a new one.
    pub fn open_tap() -> Result<Tap> {
        let tap = Tap::open(&TapConfig {
            name: TAP_NAME.into(),
            mtu: 1500,
            queue_length: TapConfig::DEFAULT_QUEUE_LENGTH,
            queues: 1,
        })?;
        let mac = tap.peer_mac().map(|byte| format!("{byte:02x}")).join(":");
        // First the neighbour: packets come as soon as there is a route.
        run(&format!("ip neigh replace 198.51.100.10 lladdr {mac} dev {TAP_NAME} nud permanent"))?;
        run(&format!("ip route add 198.51.100.10/32 dev {TAP_NAME}"))?;
        Ok(tap)
    }
}

fn run(command: &str) -> Result<()> {
    let mut words = command.split_whitespace();
    let program = words.next().context("an empty command")?;
    let output = Command::new(program).args(words).output().context(command.to_owned())?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
