//! A director between a silent client and a silent real server, and what it makes of a case.
//!
//! ```text
//! client eth0 ─── eth0 director eth1 ─── eth0 real
//! ```
//!
//! Client and real server have no addresses and say nothing of their own: frames are put on the one
//! wire and taken from both.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use adit_lab::corpus::{Case, Ends, Sent, TRAILER};
use adit_lab::io::packet::PacketSocket;
use adit_lab::network::{address_lines, make_router, wire};
use adit_lab::packet::{IpPacket, datagram, echo_request};
use adit_lab::topology::{CLIENT, CLIENT6, VIP, VIP6};
use adit_lab::{
    Config, Director, Frame, Host, Machine, MachineSpec, Namespace, Result, Run, Service, Sniffer,
    wait_until,
};

/// Limit for one marker to come through; milliseconds on an idle computer.
const SOON: Duration = Duration::from_secs(20);

/// Limit for a marker that is sent again when it does not come through.
const FIRST_TRY: Duration = Duration::from_millis(500);

/// Port of the services.
const PORT: u16 = 7000;

/// Source port of markers, below those of the corpus, and their echo identifier.
const MARKER_PORT: u16 = 19_000;
const MARKER_ID: u16 = 0xadad;

/// Where the corpus is sent from and to.
pub(crate) fn ends() -> Ends {
    let (IpAddr::V4(client4), IpAddr::V6(client6)) = (CLIENT, CLIENT6) else { unreachable!() };
    let (IpAddr::V4(vip4), IpAddr::V6(vip6)) = (VIP, VIP6) else { unreachable!() };
    Ends {
        client4,
        client6,
        vip4,
        vip6,
        narrow4: "198.51.100.11".parse().expect("an address"),
        narrow6: "2001:db8:100::11".parse().expect("an address"),
        port: PORT,
    }
}

/// Each VIP with its one real server.
fn pairs() -> [(IpAddr, IpAddr); 4] {
    let ends = ends();
    let address = |text: &str| text.parse().expect("an address");
    [
        (ends.vip4.into(), address("10.20.0.11")),
        (ends.vip6.into(), address("fd00:20::11")),
        (ends.narrow4.into(), address("10.20.0.12")),
        (ends.narrow6.into(), address("fd00:20::12")),
    ]
}

/// What a director made of a case.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Frames that arrived at the real server, in their order.
    pub(crate) forwarded: Vec<Vec<u8>>,
    /// Frames that the client got.
    pub(crate) answers: Vec<Vec<u8>>,
}

/// A director and its two wires.
pub(crate) struct Site {
    client: PacketSocket,
    at_client: Sniffer,
    at_real: Sniffer,
    /// Link header of what the client sends, without its type.
    link: [u8; 12],
    markers: u16,
    /// What forwards; it goes when the site goes.
    _director: Box<dyn Send>,
}

impl Site {
    /// The project's director in a namespace of this kernel.
    pub(crate) fn adit(run: &Arc<Run>) -> Result<Self> {
        let wires = Wires::create(run, "adit")?;
        make_router(&wires.director)?;
        wires.director.sh(&format!("ip -batch - <<END\n{}END\n{}", wires.lines()?, QUIET))?;
        let mut config = Config::new()
            // What is answered shall not depend on how fast the corpus is sent.
            .section("[limits]\nemitted_per_client = 100_000\nemitted_total = 100_000");
        for (number, (vip, real)) in pairs().into_iter().enumerate() {
            let at = (vip, PORT).into();
            config = config
                .service(Service::tcp(&format!("tcp{number}"), at).address(real, 1))
                .service(Service::udp(&format!("udp{number}"), at).address(real, 1));
        }
        let host = Arc::new(wires.director.clone());
        let director = Director::start(host, &config)?;
        let mac = mac(&wires.director, "eth0")?;
        Self::listen(&wires, &mac, Box::new(director))
    }

    /// The kernel's director, in a guest.
    pub(crate) fn ipvs(run: &Arc<Run>) -> Result<Self> {
        let wires = Wires::create(run, "ipvs")?;
        let setup = format!(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
             net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0\n\
             ip -batch - <<END\n{}END\n{QUIET}",
            wires.lines()?
        );
        let spec = MachineSpec {
            nics: 2,
            setup,
            modules: vec!["ip_vs", "ip_vs_rr", "ip6_tunnel"],
            ..MachineSpec::default()
        };
        let machine = Machine::boot(wires.director.clone(), &spec)?;
        let mut script = String::new();
        for (vip, real) in pairs() {
            let nodad = if vip.is_ipv6() { " nodad" } else { "" };
            script.push_str(&format!("ip addr add {vip} dev lo{nodad}\n"));
            let bracketed = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            };
            let (vip, real) = (bracketed(vip), bracketed(real));
            for protocol in ["-t", "-u"] {
                script.push_str(&format!(
                    "ipvsadm -A {protocol} {vip}:{PORT} -s rr\n\
                     ipvsadm -a {protocol} {vip}:{PORT} -r {real}:{PORT} -i\n"
                ));
            }
        }
        machine.sh(&script)?;
        let mac = mac(&machine, "eth0")?;
        Self::listen(&wires, &mac, Box::new(machine))
    }

    fn listen(wires: &Wires, to: &str, director: Box<dyn Send>) -> Result<Self> {
        let ip = |frame: &Frame| matches!(frame.ether_type(), Some(0x0800 | 0x86dd));
        let at_client = Sniffer::start(&wires.client, "eth0", move |frame| {
            !frame.outgoing && ip(frame) && !is_neighbour_discovery(&frame.bytes)
        })?;
        let at_real = Sniffer::start(&wires.real, "eth0", move |frame| {
            !frame.outgoing && ip(frame) && !is_neighbour_discovery(&frame.bytes)
        })?;
        let client = wires.client.enter(|| PacketSocket::open_to_send("eth0"))?;
        let client = client.expect("the device is there");
        let mut link = [0; 12];
        let macs = format!("{to}:{}", mac(&wires.client, "eth0")?);
        for (byte, text) in link.iter_mut().zip(macs.split(':')) {
            *byte = u8::from_str_radix(text, 16).expect("an Ethernet address");
        }
        let mut site = Self { client, at_client, at_real, link, markers: 0, _director: director };
        // The first may be too early: a director that has just started looks for its way.
        wait_until(SOON, "the first marker", || site.settle(FIRST_TRY).is_ok())?;
        site.forget();
        Ok(site)
    }

    /// Sends a case, and waits until everything that comes of it has come.
    pub(crate) fn pass(&mut self, case: &Case) -> Result<Outcome> {
        for sent in &case.packets {
            self.send(sent, case.ipv6);
        }
        self.settle(SOON)?;
        let of = |sniffer: &Sniffer| {
            let frames = sniffer.frames().into_iter().map(|frame| frame.bytes);
            frames.filter(|bytes| !is_marker(bytes)).collect()
        };
        let outcome = Outcome { forwarded: of(&self.at_real), answers: of(&self.at_client) };
        self.forget();
        Ok(outcome)
    }

    fn forget(&self) {
        self.at_client.clear();
        self.at_real.clear();
    }

    fn send(&self, sent: &Sent, ipv6: bool) {
        let mut frame = self.link.to_vec();
        frame.extend(if ipv6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        frame.extend_from_slice(&sent.packet);
        frame.resize(frame.len() + sent.trailer, TRAILER);
        self.client.send(&frame).expect("the wire takes a frame");
    }

    /// Sends markers, which take the way of packets and of answers, behind what was sent before, and
    /// waits for them. Twice, so that whatever is a little later than its marker is there too.
    fn settle(&mut self, limit: Duration) -> Result<()> {
        for _ in 0..2 {
            self.markers += 1;
            let number = self.markers;
            let flow = [(CLIENT, MARKER_PORT).into(), (VIP, PORT).into()];
            let through = datagram(flow[0], flow[1], &number.to_be_bytes());
            let back = echo_request(CLIENT, VIP, MARKER_ID, &number.to_be_bytes());
            self.send(&through.into(), false);
            self.send(&back.into(), false);
            let seen = |sniffer: &Sniffer| {
                let frames = sniffer.frames();
                frames.iter().any(|frame| {
                    is_marker(&frame.bytes) && frame.bytes.ends_with(&number.to_be_bytes())
                })
            };
            wait_until(limit, "a marker at the real server", || seen(&self.at_real))?;
            wait_until(limit, "a marker at the client", || seen(&self.at_client))?;
        }
        Ok(())
    }
}

/// Whether a frame is a marker, wrapped or answered.
fn is_marker(frame: &[u8]) -> bool {
    let Some(ip) = IpPacket::from_ethernet(frame) else { return false };
    let through = |ip: IpPacket| ip.flow().is_some_and(|(from, _)| from.port() == MARKER_PORT);
    let back = ip.icmp() == Some((0, 0)) && ip.payload[4..6] == MARKER_ID.to_be_bytes();
    back || ip.inner().is_some_and(through)
}

/// Neighbour and router discovery and group membership, which kernels send of their own.
fn is_neighbour_discovery(frame: &[u8]) -> bool {
    IpPacket::from_ethernet(frame)
        .and_then(|ip| ip.icmp().filter(|_| ip.source.is_ipv6()))
        .is_some_and(|(kind, _)| matches!(kind, 130..=137 | 143))
}

/// No limits on answers, as for the other director; no rest between two of them.
const QUIET: &str = "sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0\n\
     sysctl -qw net.ipv4.icmp_msgs_per_sec=100000 net.ipv4.icmp_msgs_burst=100000 || true\n";

/// The hosts of a site and the wires between them.
struct Wires {
    client: Namespace,
    director: Namespace,
    real: Namespace,
}

impl Wires {
    fn create(run: &Arc<Run>, name: &str) -> Result<Self> {
        let host = |role: &str| Namespace::create(run, &format!("{role}-{name}"));
        let (client, director, real) = (host("client")?, host("director")?, host("real")?);
        for silent in [&client, &real] {
            silent.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
            silent.sysctl("net.ipv6.conf.all.disable_ipv6", "1")?;
        }
        wire(&client, "eth0", &director, "eth0")?;
        wire(&director, "eth1", &real, "eth0")?;
        Ok(Self { client, director, real })
    }

    /// `ip` commands for the director: addresses, routes, and neighbours, who do not answer.
    fn lines(&self) -> Result<String> {
        let (client, real) = (mac(&self.client, "eth0")?, mac(&self.real, "eth0")?);
        let mut lines = address_lines("eth0", &["10.1.0.5/24", "fd00:1::5/64"]);
        lines.push_str(&address_lines("eth1", &["10.20.0.5/24", "fd00:20::5/64"]));
        let mut neighbour = |address: IpAddr, mac: &str, device: &str| {
            lines.push_str(&format!(
                "neigh replace {address} lladdr {mac} dev {device} nud permanent\n"
            ));
        };
        neighbour(CLIENT, &client, "eth0");
        neighbour(CLIENT6, &client, "eth0");
        for (_, address) in pairs() {
            neighbour(address, &real, "eth1");
        }
        for (_, address) in &pairs()[2..] {
            let mtu = adit_lab::corpus::NARROW_MTU;
            lines.push_str(&format!("route add {address} dev eth1 mtu lock {mtu}\n"));
        }
        Ok(lines)
    }
}

/// The hardware address of a device; sysfs would show that of another namespace.
fn mac(host: &dyn Host, device: &str) -> Result<String> {
    let line = host.sh(&format!("ip -o link show dev {device}"))?;
    let mut words = line.split_whitespace().skip_while(|word| *word != "link/ether");
    Ok(words.nth(1).expect("an Ethernet device has an address").to_owned())
}
