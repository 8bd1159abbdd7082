//! Who gets which client is known before the client comes.

use std::collections::BTreeMap;
use std::time::Duration;

use adit_lab::postgres::PORT;
use adit_lab::topology::vip;
use adit_lab::{RealServer, Service, wait_until};

use crate::rig::Rig;

const FLOWS: u16 = 1000;

/// Limit for the databases to have logged all.
const LOGGED: Duration = Duration::from_secs(30);

pub(crate) fn flows_land_where_explain_said_before_any_traffic(rig: &Rig) {
    let [first, second, third] = rig.reals() else { panic!("three real servers") };
    let service =
        Service::tcp("orders", vip(PORT)).reals([first, second]).address(third.address(false), 50);
    let config = rig.config(service);
    let sources = rig.sources(FLOWS);
    let said = rig.placed(&config, &sources, PORT);

    let director = rig.start(&config);
    rig.knock(&sources);
    // A database logs a connection once it has started a process for it.
    let logged = || -> usize {
        let ours = |real: &RealServer| -> usize {
            let clients = real.database_connections().unwrap();
            clients.iter().filter(|client| said.contains_key(client)).count()
        };
        rig.lab().reals.iter().map(ours).sum()
    };
    wait_until(LOGGED, "the databases' logs", || logged() >= FLOWS.into()).unwrap();
    let mut landed = BTreeMap::new();
    let mut counts = BTreeMap::new();
    for real in &rig.lab().reals {
        for client in real.database_connections().unwrap() {
            if said.contains_key(&client) {
                let before = landed.insert(client, real.name().to_owned());
                assert_eq!(before, None, "{client} reached two servers");
                *counts.entry(real.name()).or_insert(0_u32) += 1;
            }
        }
    }
    let elsewhere: Vec<_> =
        said.iter().filter(|(client, real)| landed.get(client) != Some(real)).collect();
    assert!(elsewhere.is_empty(), "explain said otherwise of {}: {elsewhere:?}", elsewhere.len());
    assert_eq!(landed.len(), usize::from(FLOWS));
    // 400, 400 and 200 expected, with a standard deviation of 15 at most.
    println!("{counts:?}");
    assert!((300..500).contains(&counts[first.name()]), "{counts:?}");
    assert!((130..270).contains(&counts[third.name()]), "{counts:?}");
    let totals = director.totals().unwrap();
    assert_eq!((totals["scheduled"], totals["rederived"]), (FLOWS.into(), 0));
}
