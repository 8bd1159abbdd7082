//! How many packets a second `adit-realserver decap` unwraps beside `tunl0`, by turns in one guest. No
//! test: `make bench` runs it.

#![allow(clippy::unwrap_used, reason = "a bench ends where something fails")]
#![allow(clippy::disallowed_methods, reason = "a bench takes its time")]

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use adit_lab::host::Process;
use adit_lab::packet::{datagram, encapsulate};
use adit_lab::{
    Host, Kind, Lab, LabSpec, Machine, MachineSpec, Namespace, binaries, report, wait_until,
};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, connect, send, socket,
};

const REAL: &str = "10.20.0.11";
/// The segment's router, which sends in the director's stead.
const DIRECTOR: &str = "10.20.0.1";
const VIP: &str = "198.51.100.10";
const PORT: u16 = 7000;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(60);

fn program(guest: &Machine) -> String {
    guest.program(&binaries::realserver().unwrap()).unwrap().join(" ")
}

fn boot(lab: &Lab) -> Machine {
    let namespace = Namespace::create(lab.run(), "real1").unwrap();
    lab.dcs[0].plug(&namespace, "eth0").unwrap();
    let setup = format!(
        "ip addr add {REAL}/24 dev eth0\nip link set eth0 up\nip route add default via {DIRECTOR}\n"
    );
    let spec =
        MachineSpec { kind: Kind::Guest, setup, modules: vec!["tun"], ..MachineSpec::default() };
    Machine::boot(namespace, &spec).unwrap()
}

/// A socket that takes packets for the VIP and is never read: it is full soon, and what comes then is
/// dropped at its door, for either device.
fn sink(guest: &Machine) -> Process {
    let script = format!(
        "import socket, time\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         s.bind(('0.0.0.0', {PORT}))\n\
         time.sleep(3600)"
    );
    guest.start("sink", &["python3", "-c", &script]).unwrap()
}

/// Packets that came out of a device.
fn received(guest: &Machine, device: &str) -> u64 {
    let path = format!("/sys/class/net/{device}/statistics/rx_packets");
    guest.run(&["cat", &path]).unwrap().trim().parse().unwrap()
}

/// A raw socket that leads to the real server: nothing is looked up for each packet.
fn sender(host: &Namespace) -> OwnedFd {
    let SocketAddr::V4(to) = SocketAddr::new(REAL.parse().unwrap(), 0) else { panic!("IPv6") };
    let open = || {
        let kind = (AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let socket = socket(kind.0, kind.1, kind.2, Some(SockProtocol::Raw))?;
        connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
        Ok::<_, Errno>(socket)
    };
    host.enter(open).unwrap().unwrap()
}

/// Packets a second that come out of a device while more are sent than it can take. The guest is asked
/// before and afterwards: it would hardly answer in between.
fn measure(lab: &Lab, guest: &Machine, device: &str, length: usize) -> f64 {
    let [real, director, vip] = [REAL, DIRECTOR, VIP].map(|text| text.parse::<IpAddr>().unwrap());
    let client = SocketAddr::new("10.1.0.10".parse().unwrap(), 40_000);
    let inner = datagram(client, SocketAddr::new(vip, PORT), &vec![0; length - 28]);
    let packet = encapsulate(director, real, &inner);
    let sender = sender(&lab.dc_routers[0]);
    let (before, start) = (received(guest, device), Instant::now());
    let mut sent = 0_u64;
    while start.elapsed() < ROUND {
        // A full queue is what is wanted.
        for _ in 0..64 {
            let sending = send(sender.as_raw_fd(), &packet, MsgFlags::MSG_DONTWAIT);
            sent += u64::from(sending.is_ok());
        }
    }
    let received = received(guest, device) - before;
    assert!(received > 0, "nothing came out of {device}");
    if received > sent * 9 / 10 {
        report(&format!("{device} took {received} of {sent}: it could have taken more"));
    }
    received as f64 / ROUND.as_secs_f64()
}

fn by_kernel(lab: &Lab, guest: &Machine, length: usize) -> f64 {
    let program = program(guest);
    guest.sh(&format!("{program} apply --vip {VIP} --director {DIRECTOR}")).unwrap();
    let rate = measure(lab, guest, "tunl0", length);
    guest.sh(&format!("{program} remove")).unwrap();
    rate
}

fn by_decap(lab: &Lab, guest: &Machine, length: usize) -> f64 {
    let program = program(guest);
    let mut words: Vec<&str> = program.split(' ').collect();
    words.extend(["decap", "--json", "--vip", VIP, "--director", DIRECTOR]);
    // A log of an earlier round would be taken for this one's.
    let _ = std::fs::remove_file(guest.namespace().dir().join("decap.log"));
    let process = guest.start("decap", &words).unwrap();
    wait_until(SOON, "decap", || process.log().contains("unwraps on")).unwrap();
    let rate = measure(lab, guest, "adit-decap0", length);
    process.signal(Signal::SIGTERM).unwrap();
    process.wait_exit(SOON).unwrap();
    let log = process.log();
    report(log.lines().rfind(|line| line.contains("unwraps on")).unwrap_or_default());
    guest.sh(&format!("{program} remove")).unwrap();
    rate
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "a measurement: make bench"]
fn decap_beside_tunl0() {
    let spec = LabSpec {
        reals: [0, 0],
        postgres: false,
        real_kind: Some(Kind::Guest),
        ..LabSpec::default()
    };
    let lab = Lab::build(spec).unwrap();
    let guest = boot(&lab);
    let _sink = sink(&guest);
    for length in [64, 1400] {
        let rounds: Vec<_> = (0..ROUNDS)
            .map(|_| (by_kernel(&lab, &guest, length), by_decap(&lab, &guest, length)))
            .collect();
        let kernel = median(rounds.iter().map(|(kernel, _)| *kernel).collect());
        let decap = median(rounds.iter().map(|(_, decap)| *decap).collect());
        let ratio = median(rounds.iter().map(|(kernel, decap)| decap / kernel).collect());
        report(&format!(
            "{length} bytes: tunl0 {kernel:.0} packets/s, decap {decap:.0}; decap by tunl0 {ratio:.2}"
        ));
    }
}
