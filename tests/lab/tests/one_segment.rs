//! Director, real server and client on one Ethernet segment, where a real server that answers ARP for
//! the VIP would take the clients from the director.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use adit_lab::neighbour::{link_address, resolve};
use adit_lab::network::{Segment, addresses, make_router};
use adit_lab::skip::has_root;
use adit_lab::{
    Caller, Config, Director, Host, Kind, Namespace, RealServer, RealServerSpec, Run, SERVE_PORT,
    Service, report,
};

/// In the segment's own network, so that clients ask for it by ARP.
const ON_LINK: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 100));

/// Longer than any answer takes on an idle segment, and on a busy computer.
const WINDOW: Duration = Duration::from_millis(1000);

#[test]
fn one_host_of_the_segment_answers_for_the_vip() {
    if !has_root() {
        return;
    }
    let run = Arc::new(Run::new().unwrap());
    let switch = Namespace::create(&run, "switch").unwrap();
    let segment = Segment::create(&switch, "lan", &[]).unwrap();
    let [client, director] = [("client", 2), ("director", 5)].map(|(name, number)| {
        let host = Namespace::create(&run, name).unwrap();
        segment.plug(&host, "eth0").unwrap();
        addresses(&host, "eth0", &[&format!("10.9.0.{number}/24")]).unwrap();
        host
    });
    make_router(&director).unwrap();
    // Else the kernel tells clients a shorter way to a VIP that is on their own link.
    director.sysctl("net.ipv4.conf.all.send_redirects", "0").unwrap();
    director.sysctl("net.ipv4.conf.eth0.send_redirects", "0").unwrap();
    let spec = RealServerSpec {
        name: "real".to_owned(),
        kind: Kind::with_tunl0(&run).unwrap(),
        addresses: vec!["10.9.0.11/24".to_owned()],
        gateways: Vec::new(),
        vips: vec![ON_LINK],
        directors: vec!["10.9.0.5".parse().unwrap()],
        path_mtu: 0,
        postgres: false,
        bare: None,
    };
    let real = RealServer::boot(&run, &segment, spec).unwrap();

    let at = SocketAddr::new(ON_LINK, SERVE_PORT);
    let service = Service::tcp("bytes", at).reals([&real]);
    let config = Config::new().service(service);
    let _director = Director::start(Arc::new(director.clone()), &config).unwrap();
    assert_eq!(Caller::new(&client, at).whoami().unwrap(), "real", "the client is served");

    let answers = || -> BTreeSet<_> {
        resolve(&client, "eth0", ON_LINK, WINDOW).unwrap().iter().map(|a| a.mac).collect()
    };
    let of_director = link_address(&director, "eth0").unwrap();
    assert_eq!(answers(), BTreeSet::from([of_director]), "the director's alone");

    // The question is one that can have two answers.
    real.machine()
        .sh("for of in all eth0; do sysctl -qw net.ipv4.conf.$of.arp_ignore=0; done")
        .unwrap();
    let of_both = answers();
    report(&format!("with the real server's silence undone: {} answers", of_both.len()));
    assert_eq!(of_both.len(), 2, "{of_both:?}");
    assert!(of_both.contains(&of_director));
}
