//! A director's host on an older kernel, and IPsec between it and a real server.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use adit_lab::ipsec::{Cover, protect};
use adit_lab::packet::{ESP, IPIP, echo_request};
use adit_lab::report;
use adit_lab::skip::{has_guests, has_root};
use adit_lab::topology::{CLIENT, DIRECTOR, VIP};
use adit_lab::{Caller, Host, Kind, Lab, LabSpec, SERVE_PORT, Sniffer};

const SOON: Duration = Duration::from_secs(30);

/// Has a machine's kernel wrap a packet and send it: a raw socket of protocol 4.
fn send_wrapped(host: &dyn Host, to: IpAddr, inner: &[u8]) {
    let hex: String = inner.iter().map(|byte| format!("{byte:02x}")).collect();
    let script = format!(
        "import socket\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_RAW, {IPIP})\n\
         s.bind(('{DIRECTOR}', 0))\n\
         s.sendto(bytes.fromhex('{hex}'), ('{to}', 0))"
    );
    host.run(&["python3", "-c", &script]).expect("the machine sends");
}

#[test]
fn a_director_in_a_guest_reaches_real_servers_and_ipsec_hides_the_tunnel() {
    if !has_root() || !has_guests() {
        return;
    }
    let spec =
        LabSpec { reals: [1, 0], postgres: false, director: Kind::Guest, ..LabSpec::default() };
    let lab = Lab::build(spec).unwrap();
    let director = lab.director();
    let release = director.sh("uname -r").unwrap();
    report(&format!("director on Linux {}; real server: {}", release.trim(), lab.real_kind()));
    let here = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(release.trim(), here.trim(), "a kernel of its own");
    director.sh("test -c /dev/net/tun && test $(cat /proc/sys/net/ipv4/ip_forward) = 1").unwrap();

    let real = &lab.reals[0];
    let client = Sniffer::start(&lab.client, "eth0", |frame| !frame.outgoing).unwrap();
    let wire = Sniffer::start(&lab.dc_routers[0], "director", |frame| !frame.outgoing).unwrap();
    let ping = |id| {
        let inner = echo_request(CLIENT, VIP, id, b"from a guest");
        send_wrapped(director.as_ref(), real.address(false), &inner);
        client.wait_for(SOON, "the echo's answer", |ip| (ip.source == VIP).then_some(())).unwrap();
        client.clear();
    };
    ping(1);
    assert!(wire.packets().iter().any(|ip| ip.protocol == IPIP));

    let ends = ((director.as_ref(), DIRECTOR), (real.machine() as &dyn Host, real.address(false)));
    protect(Cover::Tunnel, ends.0, ends.1).unwrap();
    wire.clear();
    ping(2);
    assert!(wire.packets().iter().any(|ip| ip.protocol == ESP), "{:?}", wire.frames());
    assert!(wire.packets().iter().all(|ip| ip.protocol != IPIP), "{:?}", wire.frames());

    // Traffic that is not tunnelled is not touched.
    let to = SocketAddr::new(real.address(false), SERVE_PORT);
    assert_eq!(Caller::new(&lab.client, to).whoami().unwrap(), "real1");
}
