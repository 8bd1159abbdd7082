//! A director that dies without a word and comes back.

use adit_lab::postgres::PORT;
use adit_lab::topology::vip;
use adit_lab::{Config, RealServer, Service};

use crate::rig::{Rig, none_broken};

const SESSIONS: u16 = 200;

fn sessions_outlive_a_killed_director(rig: &Rig, scheduler: &str) {
    let config = |reals: &[RealServer]| -> Config {
        rig.config(Service::tcp("orders", vip(PORT)).scheduler(scheduler).reals(reals))
    };
    let mut director = rig.start(&config(rig.reals()));
    let sessions = rig.open(&rig.sources(SESSIONS));
    // Now the keys of some are placed elsewhere: guessing would send them to the wrong server.
    let said = director.reload(&config(&rig.lab().reals)).unwrap();
    assert!(said.success, "{}", said.text);

    director.kill().unwrap();
    director.start_again().unwrap();
    none_broken(&sessions, "after kill -9 and a restart");
    assert!(director.status().unwrap()["adopted"].as_u64() >= Some(SESSIONS.into()));
    assert_eq!(director.totals().unwrap()["rederived"], 0);
}

pub(crate) fn sessions_outlive_a_killed_director_with_maglev(rig: &Rig) {
    sessions_outlive_a_killed_director(rig, "maglev");
}

pub(crate) fn sessions_outlive_a_killed_director_with_wrr(rig: &Rig) {
    sessions_outlive_a_killed_director(rig, "wrr");
}
