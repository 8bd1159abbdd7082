//! The lab's real servers are what tests take them for.

use std::net::SocketAddr;

use adit_lab::postgres::PORT;
use adit_lab::report;
use adit_lab::{Caller, Host, Kind, Lab, LabSpec, SERVE_PORT, Session};

#[test]
fn a_real_server_has_tunl0_a_vip_and_a_database() {
    let lab = Lab::build(LabSpec { reals: [1, 0], ..LabSpec::default() }).unwrap();
    report(&format!("real servers: {}", lab.real_kind()));
    let real = &lab.reals[0];
    report(&format!("boot {:?}, ready after {:?}", real.machine().boot_time(), real.ready_after()));

    let addresses = real.machine().sh("ip -br addr").unwrap();
    let on = |device: &str| addresses.lines().find(|line| line.starts_with(device)).unwrap();
    assert!(on("tunl0").contains("198.51.100.10/32"), "{addresses}");
    assert!(on("sit0").contains("2001:db8:100::10/128"), "{addresses}");

    for ipv6 in [false, true] {
        let to = SocketAddr::new(real.address(ipv6), PORT);
        let session = Session::open(&lab.client, None, to).unwrap();
        assert_eq!(session.server(), "real1");
        assert!(real.database_connections().unwrap().contains(&session.source()));

        let caller = Caller::new(&lab.client, SocketAddr::new(real.address(ipv6), SERVE_PORT));
        assert_eq!(caller.whoami().unwrap(), "real1");
        assert_eq!(caller.upload(3_000_000, 1).unwrap(), "real1");
        caller.download(3_000_000, 2).unwrap();
        assert_eq!(caller.datagram(8000, 3).unwrap(), "real1");
    }
}

/// Where the kernel has `ipip`, real servers are namespaces: the same in everything that does
/// not need the tunnel, which this kernel may not have.
#[test]
fn a_machine_on_this_kernel_is_the_same_to_tests() {
    let spec = LabSpec {
        reals: [1, 0],
        real_kind: Some(Kind::Namespace),
        vips: Vec::new(),
        ..LabSpec::default()
    };
    let lab = Lab::build(spec).unwrap();
    let real = &lab.reals[0];
    report(&format!("boot {:?}, ready after {:?}", real.machine().boot_time(), real.ready_after()));
    assert_eq!(real.machine().kind(), Kind::Namespace);
    let to = SocketAddr::new(real.address(false), PORT);
    let session = Session::open(&lab.client, None, to).unwrap();
    assert_eq!(session.server(), "real1");
    assert!(real.database_connections().unwrap().contains(&session.source()));
    let caller = Caller::new(&lab.client, SocketAddr::new(real.address(true), SERVE_PORT));
    assert_eq!(caller.upload(1_000_000, 4).unwrap(), "real1");
    // A root of its own: what it writes is seen nowhere else.
    real.machine().sh("echo here >/etc/only-here").unwrap();
    assert!(!std::path::Path::new("/etc/only-here").exists());
    real.machine().power_off().unwrap();
    caller.whoami().expect_err("the plug was pulled");
}
