//! How many packets a second `adit-realserver decap` unwraps beside `tunl0`, by turns in one guest. No
//! test: `make bench` runs it.

#![allow(clippy::unwrap_used, reason = "a bench ends where something fails")]
#![allow(clippy::disallowed_methods, reason = "a bench takes its time")]

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use adit_lab::host::Process;
use adit_lab::packet::{datagram, encapsulate};
use adit_lab::{
    Host, Kind, Lab, LabSpec, Machine, MachineSpec, Namespace, RawSender, binaries, report,
    wait_for, wait_until,
};
use nix::sys::signal::Signal;

const REAL: &str = "10.20.0.11";
/// The segment's router, which sends in the director's stead.
const DIRECTOR: &str = "10.20.0.1";
const VIP: &str = "198.51.100.10";
const PORT: u16 = 7000;
const ROUNDS: usize = 7;
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

/// Packets that came out of a device, and the guest's time in seconds.
fn received(guest: &Machine, device: &str) -> adit_lab::Result<(f64, f64)> {
    let path = format!("/sys/class/net/{device}/statistics/rx_packets");
    let text = guest.run(&["cat", "/proc/uptime", &path])?;
    let mut words = text.split_whitespace().map(|word| word.parse().unwrap_or_default());
    let time = words.next().unwrap_or_default();
    Ok((words.next_back().unwrap_or_default(), time))
}

/// Packets a second over a round, once the first have come.
fn rate(guest: &Machine, device: &str) -> adit_lab::Result<f64> {
    let (begun, _) = received(guest, device)?;
    wait_for(SOON, "packets", || received(guest, device).ok().filter(|(now, _)| *now > begun))?;
    let (before, start) = received(guest, device)?;
    std::thread::sleep(ROUND);
    let (after, end) = received(guest, device)?;
    Ok((after - before) / (end - start))
}

/// Packets a second that come out of a device while more are sent than it can take.
fn measure(lab: &Lab, guest: &Machine, device: &str, length: usize) -> f64 {
    let [real, director, vip] = [REAL, DIRECTOR, VIP].map(|text| text.parse::<IpAddr>().unwrap());
    let client = SocketAddr::new("10.1.0.10".parse().unwrap(), 40_000);
    let inner = datagram(client, SocketAddr::new(vip, PORT), &vec![0; length - 28]);
    let packet = encapsulate(director, real, &inner);
    let sender = RawSender::new(&lab.dc_routers[0]).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // A full queue is what is wanted.
                let _ = sender.send(&packet);
            }
        });
        let rate = rate(guest, device);
        stop.store(true, Ordering::Relaxed);
        rate.unwrap()
    })
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
