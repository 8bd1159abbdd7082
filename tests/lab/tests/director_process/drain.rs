//! A real server that is drained under sessions: what stays, what moves, and what comes back.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;

use adit_lab::topology::{vip, vip6};
use adit_lab::views::placed;
use adit_lab::{
    Caller, Config, Conversation, Director, Lab, Namespace, SERVE_PORT, Service, wait_until,
};

use crate::{SOON, clean_lab, start};

/// By placement alone, and by turns with persistence, so that nothing else keeps a client.
fn services(lab: &Lab) -> Config {
    let kept = Service::tcp("kept", vip6(SERVE_PORT))
        .scheduler("wrr")
        .set("persistence", r#"{ timeout = "10m", ipv6_prefix = 128 }"#);
    Config::new()
        .service(Service::tcp("bytes", vip(SERVE_PORT)).reals(&lab.reals))
        .service(kept.reals(&lab.reals))
}

/// A client of this test alone, whose cable is cut at its end: what its kernel sends again and again in
/// closing connections would be flows of the next director, and keep a VIP there.
struct Client(Namespace);

/// Number of the client.
const NUMBER: u8 = 20;

impl Client {
    fn call(&self, to: SocketAddr) -> Caller<'_> {
        Caller::new(&self.0, to)
    }

    fn sessions(&self, ports: Range<u16>) -> Vec<Conversation> {
        let open = |port| self.call(vip(SERVE_PORT)).from(from(port)).converse();
        ports.map(|port| open(port).unwrap()).collect()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.ip("link set eth0 down");
    }
}

fn from(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, 0, NUMBER)), port)
}

fn all_live(sessions: &mut [Conversation]) {
    for session in sessions {
        let server = session.server().to_owned();
        assert_eq!(session.ask_name().unwrap(), server);
    }
}

/// Waits until persistence keeps the client of a session where that is.
fn wait_for_persistence(lab: &Lab, director: &Director, session: &mut Conversation) {
    let at = lab.real(session.server()).unwrap().address(true);
    wait_until(SOON, "persistence to know the client", || {
        session.ask_name().unwrap();
        director.persisted(session.source(), vip6(SERVE_PORT)).unwrap() == Some(at)
    })
    .unwrap();
}

#[test]
fn a_drained_server_keeps_its_sessions_and_its_clients_go_elsewhere_until_it_is_back() {
    let lab = clean_lab();
    let client = Client(lab.add_client(NUMBER).unwrap());
    let mut director = start(&lab, &services(&lab));
    let mut kept = vec![client.call(vip6(SERVE_PORT)).converse().unwrap()];
    let name = kept[0].server().to_owned();
    wait_for_persistence(&lab, &director, &mut kept[0]);
    let mut all = client.sessions(30_000..30_016);
    let there = all.iter().filter(|session| session.server() == name).count();
    assert!(there > 0 && there < all.len(), "{all:?}");

    let real = lab.real(&name).unwrap();
    let [v4, v6] = [false, true].map(|v6| real.address(v6).to_string());
    assert!(director.adit(&["drain", "all", &v4, "--reason", "kernel"]).unwrap().success);
    assert!(director.adit(&["drain", "kept", &v6]).unwrap().success);
    let elsewhere = |sessions: &[Conversation]| {
        assert!(sessions.iter().all(|session| session.server() != name), "{sessions:?}");
    };
    let others = client.sessions(31_000..31_016);
    elsewhere(&others);
    // Persistence knows the client, and does not pin it there.
    let mut moved = vec![client.call(vip6(SERVE_PORT)).converse().unwrap()];
    elsewhere(&moved);
    wait_for_persistence(&lab, &director, &mut moved[0]);
    all_live(&mut all);
    all_live(&mut kept);

    director.kill().unwrap();
    director.start_again().unwrap();
    elsewhere(&client.sessions(32_000..32_016));
    all_live(&mut all);
    all_live(&mut kept);
    let remaining = || {
        let bytes = director.real("bytes", real.address(false)).unwrap().unwrap();
        bytes["drain"]["remaining"].as_u64()
    };
    wait_until(SOON, "what remains to be counted", || remaining() == Some(there as u64)).unwrap();
    let said = director.adit(&["drain", "all", &v4, "--deadline", "1s"]).unwrap();
    assert!(!said.success && said.text.contains("nothing was cut"), "{}", said.text);
    all_live(&mut all);

    // Now they end, and whoever waits hears so.
    all.retain(|session| session.server() != name);
    let said = director.adit(&["drain", "all", &v4, "--deadline", "60s"]).unwrap();
    assert!(said.success && said.text.contains("no session remains"), "{}", said.text);
    all_live(&mut all);

    assert!(director.adit(&["undrain", "all", &v4]).unwrap().success);
    let clients: Vec<_> = (33_000..33_016).map(from).collect();
    let foretold = placed(lab.director().as_ref(), &services(&lab), &clients, vip(SERVE_PORT));
    let foretold = foretold.unwrap();
    assert!(foretold.values().any(|at| *at == real.address(false)), "{foretold:?}");
    // A moment later the worker knows.
    wait_until(SOON, "one of its own clients", || {
        let caller = client.call(vip(SERVE_PORT));
        caller.whoami().unwrap() == name
    })
    .unwrap();
    for session in client.sessions(33_000..33_016) {
        let at = lab.real(session.server()).unwrap().address(false);
        assert_eq!(foretold[&session.source()], at, "back by placement alone");
    }
}
