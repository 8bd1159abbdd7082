//! A million frames that make no sense, and a session that must not notice.
//!
//! In a file of its own, hence with a lab of its own: much of the junk is fragments that belong to
//! nothing, which real servers keep for as long as they hope for the rest. Meanwhile they have no
//! memory for the fragments of others.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "what tests share is test code too")]

mod network;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use adit_lab::io::packet::PacketSocket;
use adit_lab::junk::Junk;
use adit_lab::neighbour::{Answer, Mac, link_address, own, resolve};
use adit_lab::report;
use adit_lab::skip::has_root;
use adit_lab::topology::{CLIENT_DEVICE, TAP, VIP, VIP6};
use adit_lab::{Caller, Config, Director, Lab, LabSpec, Namespace, SERVE_PORT, wait_for};
use network::{SOON, count, services, settled};

/// Asks for a VIP's MAC; an answer takes milliseconds.
fn ask(lab: &Lab, vip: IpAddr) -> Vec<Answer> {
    resolve(&lab.r0, "edge", vip, Duration::from_secs(1)).unwrap()
}

#[test]
fn a_million_senseless_frames_change_nothing_for_an_open_session() {
    if !has_root() {
        return;
    }
    const ROUNDS: u32 = 20;
    let spec = LabSpec { reals: [1, 1], postgres: false, ..LabSpec::default() };
    let lab = Lab::build(spec).unwrap();
    report(&format!("real servers: {}", lab.real_kind()));
    let config = services(&lab.reals).into_iter().fold(Config::new(), Config::service);
    let config = config.set("tap_queue_length", "65536");
    let mut director = Director::start(lab.director(), &config).unwrap();
    let to = SocketAddr::new(VIP, SERVE_PORT);
    let mut session = Caller::new(&lab.client, to).echo().unwrap();
    let owner = established(&director, &mut session);
    let answer = [VIP, VIP6].map(|vip| ask(&lab, vip));

    // Straight into the TAP, where no kernel sorts out what is wrong; onto the client-facing
    // interface from its segment; and from the clients, through a router.
    let host = lab.director();
    let (edge, _) = own(host.namespace(), CLIENT_DEVICE, false).unwrap();
    let tap = link_address(host.namespace(), TAP).unwrap();
    let (gateway, _) = own(&lab.r0, "clients", false).unwrap();
    let mut floods = [
        Flood::new(host.namespace(), TAP, tap, 1, 600_000),
        Flood::new(&lab.r0, "edge", edge, 2, 300_000),
        Flood::new(&lab.client, "eth0", gateway, 3, 100_000),
    ];
    let before = settled(&director);
    // In rounds that the TAP's queue holds, so that most of it is looked at.
    for _ in 0..ROUNDS {
        for flood in &mut floods {
            flood.send(ROUNDS);
        }
        settled(&director);
    }

    let after = settled(&director);
    let received = count(&after, "received") - count(&before, "received");
    let drops = director.adit(&["drops"]).unwrap().text;
    report(&format!("{received} frames reached the worker"));
    println!("{drops}");
    assert_eq!(after["ledger_balances"], true, "{after}");
    // Nearly all do, unless the computer is so busy that the worker hardly runs.
    assert!(received > 100_000, "{received} frames came in");
    assert_eq!(after["pid"], before["pid"]);
    assert_eq!(established(&director, &mut session), owner, "the session moved");
    assert_eq!(Caller::new(&lab.client, to).upload(1_000_000, 3).map(drop).unwrap(), ());
    assert_eq!([VIP, VIP6].map(|vip| ask(&lab, vip).len()), [1, 1], "before: {answer:?}");
    assert!(director.terminate().unwrap().success());
}

/// Junk from a device.
struct Flood {
    socket: PacketSocket,
    junk: Junk,
    frame: Vec<u8>,
    frames: u32,
}

impl Flood {
    fn new(host: &Namespace, device: &str, to: Mac, seed: u64, frames: u32) -> Self {
        let socket = host.enter(|| PacketSocket::open_to_send(device)).unwrap().unwrap();
        Self { socket, junk: Junk::new(seed, to), frame: Vec::new(), frames }
    }

    /// Sends its frames' share of one round.
    fn send(&mut self, rounds: u32) {
        for _ in 0..self.frames / rounds {
            self.junk.next(&mut self.frame);
            // A queue that is full loses the frame, as a wire does.
            let _ = self.socket.send(&self.frame);
        }
    }
}

/// Talks until the director calls the session established; returns its real server.
fn established(director: &Director, session: &mut TcpStream) -> String {
    let client = session.local_addr().unwrap();
    let wanted = |connection: &serde_json::Value| {
        connection["client"] == client.ip().to_string()
            && connection["client_port"] == client.port()
    };
    wait_for(SOON, "an established session", || {
        session.write_all(b"x").unwrap();
        session.read_exact(&mut [0]).unwrap();
        let listed = director.json(&["connections"]).unwrap();
        let ours = listed.as_array()?.iter().find(|c| wanted(c))?;
        (ours["state"] == "established").then(|| ours["real"].as_str().map(str::to_owned))?
    })
    .unwrap()
}
