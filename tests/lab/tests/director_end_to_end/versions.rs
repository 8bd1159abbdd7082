//! The other IP version, in itself.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use adit_lab::packet::IPV6_IN_IP;
use adit_lab::postgres::PORT;
use adit_lab::topology::vip6;
use adit_lab::{Caller, Host, RealServer, SERVE_PORT, Service, Session, Sniffer};

use crate::rig::Rig;

pub(crate) fn sessions_over_ipv6_reach_the_databases_in_ipv6(rig: &Rig) {
    let orders = Service::tcp("orders", vip6(PORT)).reals(rig.reals());
    let bytes = Service::tcp("bytes", vip6(SERVE_PORT)).reals(rig.reals());
    let director = rig.start(&rig.config(orders).service(bytes));
    let wrapped: Vec<_> = rig.reals().iter().map(wrapped_at).collect();

    let sources: Vec<_> = rig.sources(12).into_iter().map(|source| to_ipv6(rig, source)).collect();
    let sessions = Session::open_many(&rig.client, &sources, vip6(PORT), 4).unwrap();
    for (session, source) in sessions.iter().zip(&sources) {
        assert_eq!(session.source(), *source);
        let real = rig.lab().real(session.server()).unwrap();
        assert!(real.database_connections().unwrap().contains(source), "{source}");
    }
    assert_eq!(Session::broken(&sessions), []);
    let caller = Caller::new(&rig.client, vip6(SERVE_PORT));
    caller.upload(2_000_000, 1).unwrap();
    caller.download(2_000_000, 2).unwrap();
    assert!(director.totals().unwrap()["forwarded"] >= 2_000_000 / 1400);

    for (real, wrapped) in rig.reals().iter().zip(wrapped) {
        let outer = wrapped.packets();
        let has_session = sessions.iter().any(|session| session.server() == real.name());
        assert!(!outer.is_empty() || !has_session, "nothing was wrapped for {}", real.name());
        assert!(outer.iter().all(|ip| ip.destination == real.address(true)), "{outer:?}");
    }
}

/// IPv6 in IPv6 that comes to a real server.
fn wrapped_at(real: &RealServer) -> Sniffer {
    Sniffer::start(real.machine().namespace(), "eth0", |frame| {
        let wrapped = frame.ip().filter(|ip| ip.source.is_ipv6() && ip.protocol == IPV6_IN_IP);
        !frame.outgoing && wrapped.is_some()
    })
    .unwrap()
}

/// The client's IPv6 address with the port of its IPv4 one.
fn to_ipv6(rig: &Rig, source: SocketAddr) -> SocketAddr {
    let IpAddr::V4(address) = source.ip() else { panic!("{source} is none of IPv4") };
    // Written with the decimal digits of the IPv4 address: fd00:1::21 for 10.1.0.21.
    let text = format!("fd00:1::{}", address.octets()[3]);
    let address: Ipv6Addr = text.parse().unwrap();
    assert!(rig.client.sh("ip -6 addr").unwrap().contains(&text), "{text} is not the client's");
    SocketAddr::new(address.into(), source.port())
}
