//! A director that dies without a word and comes back.

use crate::rig::{Rig, none_broken};

const SESSIONS: u16 = 200;

/// By turns nobody can guess where a session belongs. How placement by hash fares is in
/// [`crate::membership`].
pub(crate) fn sessions_by_turns_outlive_a_killed_director(rig: &Rig) {
    let mut director = rig.start(&rig.both("wrr", rig.reals()));
    let mut sessions = rig.open(&rig.sources(SESSIONS), rig.databases / 5);
    director.kill().unwrap();
    director.start_again().unwrap();
    none_broken(&mut sessions, "after kill -9 and a restart");
    assert!(director.status().unwrap()["adopted"].as_u64() >= Some(SESSIONS.into()));
    let totals = director.totals().unwrap();
    assert_eq!((totals["rederived"], totals["resets_sent"]), (0, 0));
}
