//! Clients that are to stay where they were.

use std::time::Duration;

use adit_lab::topology::vip;
use adit_lab::{Config, SERVE_PORT, Service, wait_for};

use crate::rig::{Open, Rig, none_broken};

/// A flow counts for persistence once it is established, which takes a second.
const ESTABLISHED: Duration = Duration::from_secs(15);

/// Without persistence, this many new sessions go round all servers.
const ROUND: u16 = 9;

/// The servers by turns, so that nothing but persistence keeps a client at a server.
fn by_turns(rig: &Rig, weight: impl Fn(&str) -> u32) -> Config {
    let mut service = Service::tcp("bytes", vip(SERVE_PORT))
        .scheduler("wrr")
        .set("persistence", r#"{ timeout = "10m", ipv4_prefix = 32 }"#);
    for real in rig.reals() {
        service = service.address(real.address(false), weight(real.name()));
    }
    rig.config(service)
}

fn servers(sessions: &[Open]) -> Vec<&str> {
    let mut servers: Vec<_> = sessions.iter().map(Open::server).collect();
    servers.sort_unstable();
    servers.dedup();
    servers
}

pub(crate) fn a_client_stays_at_its_server_until_that_is_drained(rig: &Rig) {
    let mut director = rig.start(&by_turns(rig, |_| 100));
    let sources = rig.sources(1 + 3 * ROUND);
    let mut sources = sources.chunks(ROUND.into());
    let mut more = || rig.open(sources.next().unwrap(), 0);

    let mut kept = more();
    kept.truncate(1);
    let own = kept[0].server().to_owned();
    let address = rig.lab().real(&own).unwrap().address(false);
    wait_for(ESTABLISHED, "persistence to know the client", || {
        kept[0].ask_name().unwrap();
        (director.persisted(kept[0].source(), vip(SERVE_PORT)).unwrap() == Some(address))
            .then_some(())
    })
    .unwrap();
    kept.extend(more());
    assert_eq!(servers(&kept), [&own], "from other source ports");

    director.kill().unwrap();
    director.start_again().unwrap();
    none_broken(&mut kept, "after a restart");
    kept.extend(more());
    assert_eq!(servers(&kept), [&own], "after a restart");

    let drained = by_turns(rig, |name| if name == own { 0 } else { 100 });
    let said = director.reload(&drained).unwrap();
    assert!(said.success, "{}", said.text);
    let elsewhere = more();
    assert!(!servers(&elsewhere).contains(&own.as_str()), "pinned to a drained server");
    none_broken(&mut kept, "at a drained server");
}
