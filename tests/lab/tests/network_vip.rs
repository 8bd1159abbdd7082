//! The VIP as its neighbours and clients see it: who answers for it, how fast and how often, and what
//! becomes of fragments and echo requests.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "what tests share is test code too")]

mod network;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use adit_lab::neighbour::{Answer, own, resolve};
use adit_lab::packet::{IpPacket, datagram, echo_request, fragments};
use adit_lab::serve::Pattern;
use adit_lab::topology::{CLIENT, CLIENT_DEVICE, CLIENT6, VIP, VIP6};
use adit_lab::{
    Caller, Config, Director, Lab, LabSpec, RawSender, SERVE_PORT, Sniffer, wait_until,
};
use network::{SOON, count, dropped, services, settled, status, total, udp_socket};
use nix::sys::signal::Signal;

/// One lab for all tests here.
static LAB: LazyLock<Mutex<Lab>> = LazyLock::new(|| {
    let spec = LabSpec { reals: [1, 1], postgres: false, ..LabSpec::default() };
    let lab = Lab::build(spec).expect("the lab comes up");
    println!("real servers: {}", lab.real_kind());
    Mutex::new(lab)
});

/// The lab, for one test at a time.
fn lab() -> MutexGuard<'static, Lab> {
    LAB.lock().unwrap_or_else(PoisonError::into_inner)
}

fn config(lab: &Lab) -> Config {
    services(&lab.reals).into_iter().fold(Config::new(), Config::service)
}

fn start(lab: &Lab) -> Director {
    Director::start(lab.director(), &config(lab)).expect("the director starts")
}

/// How long an answer could come: the kernel's own proxy answers after up to `proxy_delay`, 0.8 s.
const WINDOW: Duration = Duration::from_millis(1000);

fn ask(lab: &Lab, vip: IpAddr) -> Vec<Answer> {
    resolve(&lab.r0, "edge", vip, WINDOW).unwrap()
}

#[test]
fn neighbours_are_answered_once_at_once_and_only_by_the_living() {
    if !network::can_run() {
        return;
    }
    let lab = lab();
    let (mac, _) = own(lab.director().namespace(), CLIENT_DEVICE, false).unwrap();
    let mut director = start(&lab);
    for vip in [VIP, VIP6] {
        let mut times = Vec::new();
        for _ in 0..5 {
            let answers = ask(&lab, vip);
            let [answer] = &answers[..] else { panic!("not one answer for {vip}: {answers:?}") };
            assert_eq!((answer.mac, answer.overriding), (mac, true), "for {vip}");
            times.push(answer.after);
        }
        // A busy computer may be late once; the kernel's random delay would be late most times.
        times.sort();
        assert!(times[2] < Duration::from_millis(10), "answers for {vip} came after {times:?}");
    }
    // The router's kernel may have asked too.
    assert!(total(&director, "neighbour_answers") >= 10);
    // Nor for what is no VIP.
    let free: IpAddr = "10.2.0.77".parse().unwrap();
    assert_eq!(ask(&lab, free), []);

    director.signal(Signal::SIGSTOP).unwrap();
    for vip in [VIP, VIP6] {
        assert_eq!(ask(&lab, vip), [], "a frozen director answered for {vip}");
    }
    director.signal(Signal::SIGCONT).unwrap();
    wait_until(SOON, "the first answer after SIGCONT", || ask(&lab, VIP).len() == 1).unwrap();

    director.kill().unwrap();
    for vip in [VIP, VIP6] {
        assert_eq!(ask(&lab, vip), [], "a dead director answered for {vip}");
    }
    director.start_again().unwrap();
    for vip in [VIP, VIP6] {
        assert_eq!(ask(&lab, vip).len(), 1, "for {vip}");
    }
    assert!(director.terminate().unwrap().success());
    for vip in [VIP, VIP6] {
        assert_eq!(ask(&lab, vip), [], "a director that ended answered for {vip}");
    }
}

#[test]
fn echo_is_answered_from_the_vip_within_limits() {
    if !network::can_run() {
        return;
    }
    let lab = lab();
    // Half of the standard, so that the test sees the configuration's limit.
    let config = config(&lab).section("[limits]\nemitted_per_client = 50");
    let director = Director::start(lab.director(), &config).unwrap();
    let sender = RawSender::new(&lab.client).unwrap();
    for (vip, client, reply) in [(VIP, CLIENT, (0, 0)), (VIP6, CLIENT6, (129, 0))] {
        let answers = Sniffer::start(&lab.client, "eth0", move |frame| {
            !frame.outgoing && frame.ip().is_some_and(|ip| ip.source == vip)
        })
        .unwrap();
        let payload = [0x5a; 500];
        let request = echo_request(client, vip, 7, &payload);
        sender.send(&request).unwrap();
        let answer = answers.wait_for(SOON, "the echo's answer", |ip| Some(ip.clone())).unwrap();
        assert_eq!((answer.icmp(), answer.destination), (Some(reply), client));
        assert!(answer.payload.ends_with(&payload) && answer.checksum_ok);
        // Identifier and sequence number.
        assert_eq!(answer.payload[4..8], IpPacket::from_ip(&request).unwrap().payload[4..8]);
        assert!(icmp_checksum_is_right(&answer));
    }

    // From a neighbour in the clients' network, whose bucket is the same; from another one, not.
    let before = settled(&director);
    let (answered, limited) =
        (count(&before, "echo_answers"), dropped(&director, "emit_rate_limited"));
    let answers = Sniffer::start(&lab.client, "eth0", |frame| {
        let answer = |ip: &IpPacket| ip.source == VIP && ip.icmp() == Some((0, 0));
        !frame.outgoing && frame.ip().is_some_and(|ip| answer(&ip))
    })
    .unwrap();
    let start = now();
    let ping = echo_request(CLIENT, VIP, 8, &[]);
    for sent in 1..=10_000 {
        sender.send(&ping).unwrap();
        // In bursts that the routers' queues hold.
        if sent % 500 == 0 {
            let wanted = count(&before, "received") + sent;
            wait_until(SOON, "the director to receive", || total(&director, "received") >= wanted)
                .unwrap();
        }
    }
    let after = settled(&director);
    let seconds = start.elapsed().as_secs_f64();
    let answered = count(&after, "echo_answers") - answered;
    let limited = dropped(&director, "emit_rate_limited") - limited;
    assert_eq!(answered + limited, 10_000);
    // Half of the standard burst of 50, and the rate; one for rounding.
    let most = 25.0 + 50.0 * seconds + 1.0;
    println!("{answered} of 10000 answered within {seconds:.2} s, at most {most:.0}");
    assert!(answered >= 25 && answered as f64 <= most, "{answered} answers, at most {most}");
    wait_until(SOON, "the answers", || answers.packets().len() as u64 >= answered).unwrap();
    assert_eq!(answers.packets().len() as u64, answered);
    assert_eq!(after["ledger_balances"], true, "{after}");
}

#[allow(clippy::disallowed_methods, reason = "a rate needs the time")]
fn now() -> Instant {
    Instant::now()
}

/// Checks an ICMP message's checksum by adding it all up (RFC 1071), with the pseudo-header in IPv6.
fn icmp_checksum_is_right(packet: &IpPacket) -> bool {
    let mut words = packet.payload.clone();
    if let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination) {
        let length = u16::try_from(packet.payload.len()).unwrap();
        words.resize(words.len().next_multiple_of(2), 0);
        words.extend(source.octets());
        words.extend(destination.octets());
        words.extend(length.to_be_bytes());
        words.extend([0, 58]);
    }
    let sum: u32 = words
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded & 0xffff) + (folded >> 16) == 0xffff
}

#[test]
fn datagrams_in_fragments_arrive_byte_exact_in_any_order_at_one_real_server() {
    if !network::can_run() {
        return;
    }
    let lab = lab();
    let director = start(&lab);
    let sender = RawSender::new(&lab.client).unwrap();
    let wires = [0, 1].map(|dc| {
        Sniffer::start(&lab.dc_routers[dc], "director", |frame| {
            !frame.outgoing && frame.ip().is_some_and(|ip| [4, 41].contains(&ip.protocol))
        })
        .unwrap()
    });
    for (vip, client) in [(VIP, CLIENT), (VIP6, CLIENT6)] {
        let to = SocketAddr::new(vip, SERVE_PORT);
        let mut servers = BTreeSet::new();
        for number in 0..16u16 {
            wires.iter().for_each(Sniffer::clear);
            let source = SocketAddr::new(client, 44_000 + number);
            let socket = udp_socket(&lab.client, source);
            let mut payload = vec![0; 8192];
            Pattern::new(number.into()).fill(&mut payload);
            // 1400 fits with an outer header; 1500 is the way out's own, and in IPv4 each
            // fragment is fragmented once more outside.
            let mtu = if number % 4 < 2 || vip.is_ipv6() { 1400 } else { 1500 };
            let pieces = |identification| {
                let mut pieces = fragments(&datagram(source, to, &payload), mtu, identification);
                if number % 2 == 1 {
                    pieces.reverse();
                }
                pieces
            };
            // A guest that is short of time may lose one: what is held against us is order,
            // content and place.
            let answer = (0..3)
                .find_map(|attempt| send(&sender, &socket, &pieces(100 + number + 1000 * attempt)));
            let answer = answer.unwrap_or_else(|| {
                let seen = wires.each_ref().map(Sniffer::frames);
                let drops = director.adit(&["drops"]).unwrap().text;
                panic!("datagram {number} from {source} is not answered\n{seen:?}\n{drops}")
            });
            let space = answer.iter().position(|&byte| byte == b' ').unwrap();
            assert!(answer[space + 1..] == payload, "datagram {number} came back changed");
            servers.insert(String::from_utf8_lossy(&answer[..space]).into_owned());
            let seen = || wires.iter().flat_map(Sniffer::packets).map(|ip| ip.destination);
            wait_until(SOON, "all pieces", || seen().count() >= pieces(0).len()).unwrap();
            let seen: BTreeSet<_> = seen().collect();
            assert_eq!(seen.len(), 1, "pieces of one datagram went to {seen:?}");
        }
        assert_eq!(servers.len(), 2, "all datagrams went to {servers:?}");
        // What the client's kernel fragments; in IPv6 it has to learn first what fits the tunnel.
        let caller = Caller::new(&lab.client, to);
        let first = caller.datagram(8192, 5);
        assert!(first.is_ok() || vip.is_ipv6(), "{first:?}");
        caller.datagram(8192, 6).unwrap();

        let source = SocketAddr::new(client, 44_100);
        let mut pieces = fragments(&datagram(source, to, &[9; 8192]), 1400, 777);
        pieces.pop();
        an_incomplete_datagram_comes_through(&sender, &wires, &pieces);
    }
    assert_eq!(dropped(&director, "fragment_timeout") + dropped(&director, "fragment_overflow"), 0);
    assert_eq!(settled(&director)["ledger_balances"], true);
    assert_eq!(status(&director)["totals"]["held"], 0);
}

/// Sends a datagram's pieces; gives what comes back for it.
fn send(sender: &RawSender, socket: &UdpSocket, pieces: &[Vec<u8>]) -> Option<Vec<u8>> {
    for piece in pieces {
        sender.send(piece).unwrap();
    }
    let mut answer = vec![0; 10_000];
    let length = socket.recv(&mut answer).ok()?;
    answer.truncate(length);
    Some(answer)
}

/// The director's kernel must not put fragments together first, which it would do for a firewall
/// that tracks them: what is never complete would then never come out.
fn an_incomplete_datagram_comes_through(sender: &RawSender, wires: &[Sniffer], pieces: &[Vec<u8>]) {
    for piece in pieces {
        sender.send(piece).unwrap();
    }
    let mut seen = 0;
    wait_until(SOON, "the fragments of an incomplete datagram", || {
        let inner = wires.iter().flat_map(Sniffer::packets).filter_map(|ip| ip.inner());
        seen = inner.filter(|ip| ip.identification == 777).count();
        seen == pieces.len()
    })
    .unwrap_or_else(|error| panic!("{error}: {seen} of {}", pieces.len()));
}
