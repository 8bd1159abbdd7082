//! A way to a real server on which a hop takes less than before.

use adit_lab::topology::{vip, vip6};
use adit_lab::{Caller, Host, Namespace, SERVE_PORT, Service, Sniffer};

use crate::rig::Rig;

/// What the hop takes, in bytes.
const NARROW: u16 = 1400;

/// The router's ways into the first data centre, as narrow as a hop behind it; wide again at the end.
struct NarrowHop(Namespace);

impl NarrowHop {
    fn new(router: &Namespace) -> Self {
        let routes = format!(
            "route replace 10.20.0.0/24 dev dc mtu lock {NARROW}\n\
             route replace fd00:20::/64 dev dc mtu lock {NARROW} metric 1"
        );
        router.ip(&routes).unwrap();
        Self(router.clone())
    }
}

impl Drop for NarrowHop {
    fn drop(&mut self) {
        // Where that fails, later scenarios see it.
        let _ = self.0.ip("route replace 10.20.0.0/24 dev dc\n\
             route del fd00:20::/64 dev dc metric 1");
    }
}

pub(crate) fn a_hop_that_became_narrow_is_told_to_the_client_and_uploads_complete(rig: &Rig) {
    let real = &rig.reals()[0];
    assert_eq!(rig.lab().data_centre(real), 0);
    let services = [("bytes", vip(SERVE_PORT)), ("bytes6", vip6(SERVE_PORT))]
        .map(|(name, at)| Service::tcp(name, at).reals([real]));
    let [first, second] = services;
    let director = rig.start(&rig.config(first).service(second));
    let _hop = NarrowHop::new(&rig.lab().dc_routers[0]);
    // Inner packets that fit: without an outer header of 20 or 40 bytes.
    for (name, to, fits) in
        [("bytes", vip(SERVE_PORT), NARROW - 20), ("bytes6", vip6(SERVE_PORT), NARROW - 40)]
    {
        let ipv6 = to.is_ipv6();
        let told = Sniffer::start(&rig.client, "eth0", |frame| {
            !frame.outgoing && frame.ip().is_some_and(|ip| ip.announced_mtu().is_some())
        })
        .unwrap();
        let behind = Sniffer::start(real.machine().namespace(), "eth0", move |frame| {
            let wrapped = |ip: &adit_lab::packet::IpPacket| {
                ip.source.is_ipv6() == ipv6 && ip.inner().is_some()
            };
            !frame.outgoing && frame.ip().is_some_and(|ip| wrapped(&ip))
        })
        .unwrap();
        let caller = Caller::new(&rig.client, to);
        assert_eq!(caller.upload(3_000_000, 1).unwrap(), real.name());

        let messages: Vec<_> =
            told.packets().iter().map(|ip| (ip.source, ip.announced_mtu().unwrap())).collect();
        assert!(!messages.is_empty(), "{name}: the client was told nothing");
        assert!(messages.iter().all(|told| *told == (to.ip(), fits.into())), "{messages:?}");
        let sizes = behind.packets().into_iter().map(|ip| ip.bytes.len());
        assert_eq!(sizes.max(), Some(NARROW.into()), "{name}");
        let listed = director.real(name, real.address(ipv6)).unwrap().unwrap();
        assert_eq!(listed["path_mtu"], NARROW, "{listed}");
    }
    assert_eq!(director.drops().unwrap()["forged_error"], 0);
}
