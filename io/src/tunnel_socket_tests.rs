//! Both engines between tunnel sockets and a TUN: what the outer header said comes with the packet, and
//! what is written to the TUN is received by the host.

use std::net::UdpSocket;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrStorage, connect, send};

use super::egress::{open_socket, set_option};
use super::testing::{in_namespace, run};
use super::*;

const VIP: [u8; 4] = [198, 51, 100, 10];
const PORT: u16 = 5000;

/// A UDP datagram from 192.0.2.1 to the VIP with this payload; without a checksum, or with that of the
/// pseudo header alone.
fn inner(payload: &[u8], partial: bool) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 2, 0, 0, 0, 7, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1];
    packet.extend(VIP);
    packet.extend(4000_u16.to_be_bytes());
    packet.extend(PORT.to_be_bytes());
    packet.extend(length(8 + payload.len()));
    packet.extend([0, 0]);
    packet.extend(payload);
    let total = packet.len();
    packet[2..4].copy_from_slice(&length(total));
    let sum = sum(&packet[..20]);
    packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
    if partial {
        let mut pseudo = packet[12..20].to_vec();
        pseudo.extend([0, 17]);
        pseudo.extend(length(8 + payload.len()));
        let sum = self::sum(&pseudo);
        packet[26..28].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum = words.sum::<u32>();
    let sum = (sum >> 16) + (sum & 0xffff);
    u16::try_from((sum >> 16) + (sum & 0xffff)).unwrap()
}

/// In IPv4 from loopback to loopback. The kernel fills in length, identification and checksum.
fn wrapped4(inner: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 3, 0, 0, 0, 0, 0, 0, 64, 4, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1];
    packet.extend(inner);
    let total = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet
}

/// Takes packets until it has seen as many as it is to see, and passes them on.
struct Unwrap {
    wanted: usize,
    packets: Vec<Vec<u8>>,
    sent: Vec<Result<(), Errno>>,
    offload: OffloadHeader,
}

impl Handler for Unwrap {
    fn batch(&mut self, _: u64, _: &mut EgressControl<'_>) {}

    fn frame(
        &mut self,
        source: Source,
        slot: &mut [u8],
        frame: Range<usize>,
        _: &mut AuxSlots,
    ) -> Disposition {
        assert_eq!(source, Source::Tunnel);
        assert!(frame.start >= HEADROOM);
        let packet = slot[frame.clone()].to_vec();
        let outer = if packet[0] >> 4 == 4 { 20 } else { 40 };
        self.packets.push(packet);
        let start = frame.start + outer - OffloadHeader::LENGTH;
        slot[start..][..OffloadHeader::LENGTH].copy_from_slice(&self.offload.bytes());
        Disposition::Send { egress: EgressId::TUN, range: start..frame.end, token: 0 }
    }

    fn sent(&mut self, _: u32, result: Result<(), Errno>) {
        self.sent.push(result);
    }

    fn tick(&mut self, _: u64, _: &mut AuxSlots, _: &IoCounters) {}

    fn stop_requested(&self) -> bool {
        self.sent.len() == self.wanted
    }
}

fn through(kind: EngineKind, tun: &Tun, offload: OffloadHeader, send: impl FnOnce()) -> Unwrap {
    let sockets = vec![
        TunnelSocket::open(OuterVersion::V4, 4).unwrap(),
        TunnelSocket::open(OuterVersion::V6, 4).unwrap(),
    ];
    let losses = sockets[0].losses().unwrap();
    let config =
        EngineConfig { slots: 16, aux_slots: 0, ..EngineConfig::new(kind, Waker::new().unwrap()) };
    let mut engine = Engine::between(sockets, tun, config).unwrap();
    send();
    let mut unwrap = Unwrap { wanted: 2, packets: Vec::new(), sent: Vec::new(), offload };
    // Ends by itself when all have been sent; a test that hangs is stopped by whoever runs it.
    engine.run(&mut unwrap).unwrap();
    assert_eq!(losses.count(), Ok(0));
    unwrap
}

fn goes_through(kind: EngineKind) {
    run("ip link set lo up");
    let tun = Tun::open("io-tun").unwrap();
    tun.set_up().unwrap();
    assert!(tun.presence().unwrap().is_there());
    run("ip addr add 198.51.100.10/32 dev io-tun");
    // So that the source is not a martian.
    run("ip route add 192.0.2.0/24 dev io-tun");
    run("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.io-tun.rp_filter=0");
    let socket = UdpSocket::bind((std::net::Ipv4Addr::from(VIP), PORT)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();

    let entry4 = OpenEgress::open(&EgressTarget::Kernel {
        destination: "127.0.0.1".parse().unwrap(),
        source: None,
    })
    .unwrap();
    let entry6 = open_socket(libc::AF_INET6, libc::SOCK_RAW, 4).unwrap();
    set_option(&entry6, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 0xb9).unwrap();
    let loopback: std::net::SocketAddr = "[::1]:0".parse().unwrap();
    connect(entry6.as_raw_fd(), &SockaddrStorage::from(loopback)).unwrap();

    // The second is longer than the loopback's packets (65,536) leave room for: it comes in fragments.
    let long = vec![7; 30_000];
    run("ip link set lo mtu 1500");
    for (partial, offload) in [
        (false, OffloadHeader::Whole),
        (true, OffloadHeader::PartialChecksum { transport: 20, field: 6 }),
    ] {
        let unwrap = through(kind, &tun, offload, || {
            entry4.send(&wrapped4(&inner(b"four", partial))).unwrap();
            send(entry6.as_raw_fd(), &inner(&long, partial), MsgFlags::empty()).unwrap();
        });
        assert_eq!(unwrap.sent, [Ok(()), Ok(())]);
        let [four, six] =
            [4, 6].map(|version| unwrap.packets.iter().find(|p| p[0] >> 4 == version).unwrap());
        assert_eq!((four[1], &four[12..20]), (3, &[127, 0, 0, 1, 127, 0, 0, 1][..]));
        assert_eq!(&four[20..], inner(b"four", partial));
        let loopback = std::net::Ipv6Addr::LOCALHOST.octets();
        assert_eq!((&six[..4], six[6], &six[8..24]), (&[0x6b, 0x90, 0, 0][..], 4, &loopback[..]));
        assert_eq!(usize::from(u16::from_be_bytes([six[4], six[5]])), six.len() - 40);
        assert_eq!(&six[40..], inner(&long, partial));

        let mut lengths: Vec<_> =
            (0..2).map(|_| socket.recv(&mut vec![0; 65_535]).unwrap()).collect();
        lengths.sort_unstable();
        assert_eq!(lengths, [4, long.len()]);
    }
    let presence = tun.presence().unwrap();
    run("ip link del io-tun");
    assert!(!presence.is_there());
}

#[test]
fn multishot_takes_packets_out_of_tunnels() {
    in_namespace("multishot_takes_packets_out_of_tunnels", || {
        let choice = choose_for_tunnels(IoPreference::Auto).unwrap();
        // An older kernel has no multishot, and says so.
        if choice.engine == EngineKind::Multishot {
            goes_through(EngineKind::Multishot);
        } else {
            assert!(choice.reason.contains("multishot: "), "{}", choice.reason);
        }
    });
}

#[test]
fn poll_takes_packets_out_of_tunnels() {
    in_namespace("poll_takes_packets_out_of_tunnels", || goes_through(EngineKind::Poll));
}
