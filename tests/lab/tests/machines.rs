//! Machines boot and obey.

use std::sync::Arc;

use adit_lab::{Host, Kind, Machine, MachineSpec, Namespace, Run};

#[test]
fn a_guest_boots_and_runs_commands() {
    let run = Arc::new(Run::new().unwrap());
    let wire = Namespace::create(&run, "wire").unwrap();
    let namespace = Namespace::create(&run, "real1").unwrap();
    namespace
        .ip(&format!("link add eth0 type veth peer name real1 netns {}", wire.name()))
        .unwrap();
    let machine = Machine::boot(namespace, &MachineSpec::default()).unwrap();
    assert_eq!(machine.kind(), Kind::Guest);
    let links = machine.sh("uname -r; ip -br link").unwrap();
    println!("{:?}\n{links}", machine.boot_time());
    assert!(links.contains("eth0"), "{links}");
}
