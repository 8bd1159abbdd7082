//! ICMP errors: those about outer packets, which must prove themselves, and those of the clients'
//! paths, which belong to one real server.

#![allow(clippy::unwrap_used, reason = "what tests share is test code too")]

mod network;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use adit_lab::packet::{IpPacket, Trouble, icmp_error};
use adit_lab::topology::{CLIENT, CLIENT6, VIP, VIP6, vip, vip6};
use adit_lab::{
    Caller, Director, Engine, Host, Lab, LabSpec, RawSender, RealServer, SERVE_PORT, Sniffer,
    report, wait_for, wait_until,
};
use network::{SOON, dropped, header_len, path_mtu, real, wait_dropped, with_identification};

adit_lab::by_each_engine! {
    a_narrow_hop_is_told_to_the_client_and_uploads_complete
    forged_errors_about_outer_packets_are_ignored_and_counted
    forged_errors_about_outer_ipv6_packets_are_ignored_and_counted
    errors_of_a_clients_path_reach_the_owning_real_server_and_only_it
    an_error_about_a_session_reaches_its_real_servers_tcp
}

/// One lab for all tests here. The hop into the first data centre takes 1400 bytes.
static LAB: LazyLock<Mutex<Lab>> = LazyLock::new(|| {
    let spec = LabSpec {
        reals: [1, 1],
        postgres: false,
        hop_mtu: [1400, 1500],
        clamp_mtu: 0,
        ..LabSpec::default()
    };
    let lab = Lab::build(spec).expect("the lab comes up");
    report(&format!("real servers: {}", lab.real_kind()));
    Mutex::new(lab)
});

/// The lab, for one test at a time, without what hosts remember of paths.
fn lab() -> MutexGuard<'static, Lab> {
    let lab = LAB.lock().unwrap_or_else(PoisonError::into_inner);
    let director = lab.director();
    let machines = lab.reals.iter().map(|real| real.machine() as &dyn Host);
    for host in [&lab.client as &dyn Host, director.as_ref()].into_iter().chain(machines) {
        host.sh("ip route flush cache; ip -6 route flush cache").expect("the host forgets");
    }
    lab
}

fn start(lab: &Lab, engine: Engine, reals: &[RealServer]) -> Director {
    network::start(lab, engine, &network::config(engine, reals))
}

/// A port of the client that no session has had yet: closed ones are remembered for a while.
fn fresh_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(41_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Source addresses of forged messages: the routers that would send them.
fn router(dc: u8, ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0xfd00, [0x31, 0x32][usize::from(dc)], 0, 0, 0, 0, 0, 1).into()
    } else {
        Ipv4Addr::new(10, 3, dc + 1, 1).into()
    }
}

fn a_narrow_hop_is_told_to_the_client_and_uploads_complete(engine: Engine) {
    let lab = lab();
    let director = start(&lab, engine, &lab.reals[..1]);
    for (ipv6, to, first, fits) in
        [(false, vip(SERVE_PORT), 1480, 1380), (true, vip6(SERVE_PORT), 1460, 1360)]
    {
        let address = lab.reals[0].address(ipv6);
        assert_eq!(path_mtu(&director, address), 1500);
        let told = Sniffer::start(&lab.client, "eth0", |frame| {
            !frame.outgoing && frame.ip().is_some_and(|ip| ip.announced_mtu().is_some())
        })
        .unwrap();
        let behind = Sniffer::start(lab.reals[0].machine().namespace(), "eth0", |frame| {
            !frame.outgoing && frame.ip().is_some_and(|ip| ip.inner().is_some())
        })
        .unwrap();
        let caller = Caller::new(&lab.client, to);
        assert_eq!(caller.upload(10_000_000, 1).unwrap(), "real1");
        caller.download(2_000_000, 2).unwrap();

        let messages: Vec<_> =
            told.packets().iter().map(|ip| (ip.source, ip.announced_mtu().unwrap())).collect();
        assert!(messages.iter().all(|(source, _)| *source == to.ip()), "{messages:?}");
        assert!(messages.iter().all(|(_, mtu)| [first, fits].contains(mtu)), "{messages:?}");
        assert_eq!(messages.last(), Some(&(to.ip(), fits)));
        let packets = behind.packets();
        assert!(packets.len() > 5000, "{} packets behind the narrow hop", packets.len());
        assert_eq!(packets.iter().map(|ip| ip.bytes.len()).max(), Some(1400));

        let listed = real(&director, address);
        assert_eq!((&listed["path_mtu"], &listed["link_mtu"]), (&1400.into(), &1500.into()));
    }
    assert_eq!(dropped(&director, "forged_error"), 0);
}

/// A session that is open, and an outer packet of it as the data centre's router has seen it.
struct Live {
    stream: TcpStream,
    outer: IpPacket,
}

impl Live {
    fn open(lab: &Lab, dc: usize, to: SocketAddr, source: SocketAddr) -> Self {
        let wire =
            Sniffer::start(&lab.dc_routers[dc], "director", |frame| !frame.outgoing).unwrap();
        let mut stream = Caller::new(&lab.client, to).from(source).echo().unwrap();
        talk(&mut stream);
        let outer = wire.wait_for(SOON, "a data segment in the tunnel", |ip| {
            let inner = ip.inner().filter(|inner| inner.flow() == Some((source, to)))?;
            let data = inner.payload.len() > 4 * usize::from(inner.tcp()?.data_offset());
            data.then(|| ip.clone())
        });
        Self { stream, outer: outer.unwrap() }
    }

    /// Position of the inner TCP header in the outer packet.
    fn tcp_at(&self) -> usize {
        header_len(&self.outer) + header_len(&self.outer.inner().expect("a tunnel packet"))
    }

    /// The outer packet with another inner sequence number, half the space away.
    fn with_wrong_sequence(&self) -> Vec<u8> {
        let mut quote = self.outer.bytes.clone();
        quote[self.tcp_at() + 4] ^= 0x80;
        quote
    }

    /// The outer packet with an inner source port that no flow has.
    fn with_unknown_flow(&self) -> Vec<u8> {
        let mut quote = self.outer.bytes.clone();
        quote[self.tcp_at()] ^= 0x11;
        quote
    }

    /// The outer packet with an identification that is not its cookie.
    fn with_wrong_cookie(&self) -> Vec<u8> {
        let identification = u16::try_from(self.outer.identification).expect("IPv4 has 16 bits");
        with_identification(&self.outer.bytes, identification ^ 0x0f00)
    }
}

/// Says something to an echo service and hears it.
fn talk(stream: &mut TcpStream) {
    let said = b"are you still there?";
    stream.write_all(said).unwrap();
    let mut heard = [0; 20];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, said);
}

fn forged_errors_about_outer_packets_are_ignored_and_counted(engine: Engine) {
    let lab = lab();
    // dc2, whose path is as wide as it says.
    let mut director = start(&lab, engine, &lab.reals[1..]);
    let address = lab.reals[1].address(false);
    let source = SocketAddr::new(CLIENT, fresh_port());
    let mut live = Live::open(&lab, 1, vip(SERVE_PORT), source);
    let sender = RawSender::new(&lab.dc_routers[1]).unwrap();
    let (from, to) = (router(1, false), live.outer.source);
    let claim = |mtu, quote: &[u8]| {
        sender.send(&icmp_error(from, to, Trouble::TooBig(mtu), quote)).unwrap();
    };
    // Right addresses, a live tuple, and one thing wrong.
    claim(1300, &live.with_wrong_cookie());
    wait_dropped(&director, "forged_error", 1);
    claim(1300, &live.with_wrong_sequence());
    wait_dropped(&director, "forged_error", 2);
    assert_eq!(path_mtu(&director, address), 1500);

    // The same with nothing wrong is believed, and so is what an old router would quote. A flow
    // that is not in the table may be one that found it full: its cookie speaks for it.
    claim(1400, &live.outer.bytes);
    wait_path_mtu(&director, address, 1400);
    let short = 20 + 8;
    claim(1396, &live.outer.bytes[..short]);
    wait_path_mtu(&director, address, 1396);
    claim(1392, &live.with_unknown_flow());
    wait_path_mtu(&director, address, 1392);
    assert_eq!(dropped(&director, "forged_error"), 2);
    assert_eq!(dropped(&director, "error_ignored"), 0);

    // After sixteen wrong cookies short quotes are not looked at for the rest of a minute, right or
    // wrong; those that quote the flow are. A director that starts has the whole minute before it.
    director.kill().unwrap();
    director.start_again().unwrap();
    let before = path_mtu(&director, address);
    let wrong = live.with_wrong_cookie();
    for _ in 0..40 {
        claim(1300, &wrong[..short]);
    }
    wait_dropped(&director, "error_ignored", 40 - 16);
    assert_eq!(dropped(&director, "forged_error"), 16);
    claim(1300, &live.outer.bytes[..short]);
    wait_dropped(&director, "error_ignored", 40 - 16 + 1);
    assert_eq!(path_mtu(&director, address), before);
    claim(1390, &live.outer.bytes);
    wait_path_mtu(&director, address, 1390);
    talk(&mut live.stream);
}

fn forged_errors_about_outer_ipv6_packets_are_ignored_and_counted(engine: Engine) {
    let lab = lab();
    let director = start(&lab, engine, &lab.reals[1..]);
    let address = lab.reals[1].address(true);
    let source = SocketAddr::new(CLIENT6, fresh_port());
    let mut live = Live::open(&lab, 1, vip6(SERVE_PORT), source);
    let sender = RawSender::new(&lab.dc_routers[1]).unwrap();
    let (from, to) = (router(1, true), live.outer.source);
    let claim = |mtu, quote: &[u8]| {
        sender.send(&icmp_error(from, to, Trouble::TooBig(mtu), quote)).unwrap();
    };
    claim(1300, &live.with_wrong_sequence());
    wait_dropped(&director, "forged_error", 1);
    claim(1300, &live.with_unknown_flow());
    wait_dropped(&director, "forged_error", 2);
    // There is no cookie, so a quote that does not show the flow proves nothing.
    claim(1300, &live.outer.bytes[..40 + 8]);
    wait_dropped(&director, "error_ignored", 1);
    // No IPv6 link is that narrow.
    claim(1200, &live.outer.bytes);
    wait_dropped(&director, "error_ignored", 2);
    assert_eq!(path_mtu(&director, address), 1500);
    claim(1400, &live.outer.bytes);
    wait_path_mtu(&director, address, 1400);
    talk(&mut live.stream);
}

fn wait_path_mtu(director: &Director, address: IpAddr, mtu: u64) {
    let mut seen = 0;
    wait_until(SOON, "the path MTU", || {
        seen = path_mtu(director, address);
        seen == mtu
    })
    .unwrap_or_else(|error| panic!("{error}: {seen} instead of {mtu}"));
}

/// A UDP flow to each real server, by the source that it has.
fn flows(lab: &Lab, to: SocketAddr) -> [SocketAddr; 2] {
    let client = if to.is_ipv6() { CLIENT6 } else { CLIENT };
    let mut found = [None; 2];
    for port in 42_000..42_100 {
        let source = SocketAddr::new(client, port);
        let name = Caller::new(&lab.client, to).from(source).datagram(100, 1).unwrap();
        let at = lab.reals.iter().position(|real| real.name() == name).unwrap();
        found[at].get_or_insert(source);
        if let [Some(first), Some(second)] = found {
            return [first, second];
        }
    }
    panic!("all flows went to one real server: {found:?}");
}

/// MTU in bytes of a real server's route to the client, where an error has taught it one.
fn learned(server: &RealServer, client: IpAddr) -> Option<u64> {
    let text = server.machine().run(&["ip", "-j", "route", "get", &client.to_string()]).unwrap();
    let routes: serde_json::Value = serde_json::from_str(&text).unwrap();
    routes[0]["metrics"].as_array()?.iter().find_map(|metric| metric["mtu"].as_u64())
}

fn errors_of_a_clients_path_reach_the_owning_real_server_and_only_it(engine: Engine) {
    let lab = lab();
    let director = start(&lab, engine, &lab.reals);
    let wires = [0, 1].map(|dc| {
        Sniffer::start(&lab.dc_routers[dc], "director", |frame| {
            let inner = frame.ip().and_then(|ip| ip.inner());
            !frame.outgoing && inner.is_some_and(|inner| inner.icmp().is_some())
        })
        .unwrap()
    });
    let sender = RawSender::new(&lab.r0).unwrap();
    let mut unknown = dropped(&director, "icmp_no_flow");
    for (vip, client, hop, mtu) in [
        (VIP, CLIENT, IpAddr::from([10, 1, 0, 1]), 1300),
        (VIP6, CLIENT6, "fd00:1::1".parse().unwrap(), 1300),
    ] {
        let to = SocketAddr::new(vip, SERVE_PORT);
        let answers = Sniffer::start(&lab.client, "eth0", |frame| !frame.outgoing).unwrap();
        let sources = flows(&lab, to);
        for (owner, source) in sources.into_iter().enumerate() {
            let reply = answers
                .wait_for(SOON, "the answer", |ip| {
                    (ip.flow() == Some((to, source))).then(|| ip.clone())
                })
                .unwrap();
            // As few as 8 bytes of what is behind the IP header.
            let quote = &reply.bytes[..header_len(&reply) + 8];
            for (trouble, kind) in [
                (Trouble::HostUnreachable, if vip.is_ipv4() { (3, 1) } else { (1, 3) }),
                (Trouble::TooBig(mtu), if vip.is_ipv4() { (3, 4) } else { (2, 0) }),
            ] {
                wires.iter().for_each(Sniffer::clear);
                let error = icmp_error(hop, vip, trouble, quote);
                sender.send(&error).unwrap();
                let wrapped = wires[owner]
                    .wait_for(SOON, "the error in the tunnel", |ip| {
                        (ip.inner()?.icmp()? == kind).then(|| ip.clone())
                    })
                    .unwrap();
                assert_eq!(wrapped.destination, lab.reals[owner].address(vip.is_ipv6()));
                let inner = wrapped.inner().unwrap();
                assert_eq!((inner.source, inner.destination), (hop, vip));
                assert_eq!(inner.payload, IpPacket::from_ip(&error).unwrap().payload);
            }
            let real = &lab.reals[owner];
            wait_for(SOON, "the real server to believe it", || learned(real, client)).unwrap();
            assert_eq!(learned(real, client), Some(u64::from(mtu)));
            assert_eq!(wires[owner].packets().len(), 1);
            assert_eq!(wires[1 - owner].packets(), []);
            if owner == 0 {
                assert_eq!(learned(&lab.reals[1], client), None, "the other has heard of it");
            }

            // A flow that nobody has.
            let mut foreign = quote.to_vec();
            foreign[header_len(&reply) + 2] ^= 0x11;
            sender.send(&icmp_error(hop, vip, Trouble::TooBig(1290), &foreign)).unwrap();
            unknown += 1;
            wait_dropped(&director, "icmp_no_flow", unknown);
            assert_eq!(wires.iter().map(|wire| wire.packets().len()).sum::<usize>(), 1);
        }
    }
}

fn an_error_about_a_session_reaches_its_real_servers_tcp(engine: Engine) {
    let lab = lab();
    let director = start(&lab, engine, &lab.reals[..1]);
    let (to, source) = (vip(SERVE_PORT), SocketAddr::new(CLIENT, fresh_port()));
    let answers = Sniffer::start(&lab.client, "eth0", |frame| !frame.outgoing).unwrap();
    let mut stream = Caller::new(&lab.client, to).from(source).echo().unwrap();
    talk(&mut stream);
    let reply = answers
        .wait_for(SOON, "the echo", |ip| {
            let data = ip.payload.len() > 4 * usize::from(ip.tcp()?.data_offset());
            (ip.flow()? == (to, source) && data).then(|| ip.clone())
        })
        .unwrap();
    // The next segment: about older ones, which were acknowledged, TCP believes nothing.
    let mut quote = reply.bytes[..header_len(&reply) + 8].to_vec();
    let next = reply.tcp().unwrap().sequence_number.wrapping_add(20);
    quote[header_len(&reply) + 4..].copy_from_slice(&next.to_be_bytes());
    let hop = IpAddr::from([10, 1, 0, 1]);
    let error = icmp_error(hop, VIP, Trouble::TooBig(1200), &quote);
    RawSender::new(&lab.r0).unwrap().send(&error).unwrap();
    wait_until(SOON, "the session's real server to believe it", || {
        learned(&lab.reals[0], CLIENT) == Some(1200)
    })
    .unwrap();
    talk(&mut stream);
    assert_eq!(dropped(&director, "icmp_no_flow"), 0);
}
