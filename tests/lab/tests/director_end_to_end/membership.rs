//! Real servers that come and go while sessions are open.

use std::net::SocketAddr;

use adit_lab::{Director, Session};
use serde_json::Value;

use crate::rig::{Rig, none_broken};

/// As many keys of open sessions, at least, are placed on the server that is added.
const MOVED: usize = 20;

/// The only change of a reload, with the number of connections it touches.
fn change(answer: &Value) -> (String, u64) {
    let changes = answer["changes"].as_array().unwrap();
    assert_eq!(changes.len(), 1, "{answer}");
    let connections = changes[0]["connections"].as_u64().unwrap();
    (changes[0]["what"].as_str().unwrap().to_owned(), connections)
}

fn state(rig: &Rig, director: &Director) -> Option<String> {
    let real = director.real("orders", rig.spare().address(false)).unwrap();
    real.map(|real| real["state"].as_str().unwrap().to_owned())
}

pub(crate) fn a_server_joins_and_leaves_under_sessions(rig: &Rig) {
    let three = rig.orders(rig.reals());
    let four = rig.orders(rig.reals().iter().chain([rig.spare()]));
    let spare = rig.spare().name();
    let sources = rig.sources(200);
    let moves = rig.placed(&four, &sources).values().filter(|&name| name == spare).count();
    println!("{moves} of {} sessions have keys that move", sources.len());
    assert!(moves >= MOVED);

    let director = rig.start(&three);
    let mut sessions = rig.open(&sources);
    assert!(sessions.iter().all(|session| session.server() != spare));

    four.write(director.host().as_ref(), "adit.toml").unwrap();
    let dry = director.json(&["reload", "--dry-run"]).unwrap();
    let added = format!("real server {} added", rig.spare().address(false));
    let (what, connections) = change(&dry);
    assert!(what.contains(&added), "{what}");
    assert_eq!((dry["applied"].as_bool(), connections), (Some(false), 0));
    assert_eq!(state(rig, &director), None, "a dry run changed something");
    let done = director.json(&["reload"]).unwrap();
    assert_eq!(done["applied"], true, "{done}");
    none_broken(&sessions, "after a server was added");
    let theirs = keys_of_the_spare(rig, &four_places(rig, &four));
    let joined = rig.open(&theirs);
    assert!(joined.iter().all(|session| session.server() == spare), "{joined:?}");
    sessions.extend(joined);

    three.write(director.host().as_ref(), "adit.toml").unwrap();
    let dry = director.json(&["reload", "--dry-run"]).unwrap();
    let removed = format!("real server {} removed", rig.spare().address(false));
    let (what, connections) = change(&dry);
    assert!(what.contains(&removed), "{what}");
    assert_eq!(connections, theirs.len() as u64, "{dry}");
    director.json(&["reload"]).unwrap();
    assert_eq!(state(rig, &director).as_deref(), Some("draining"));
    none_broken(&sessions, "after a server was removed");
    let others = rig.open(&keys_of_the_spare(rig, &four_places(rig, &four)));
    assert!(
        others.iter().all(|session| session.server() != spare),
        "a draining server got new sessions"
    );
    sessions.extend(others);

    // What takes out the next one cuts the sessions there, and no other's.
    let cut = rig.reals()[0].name();
    let said = rig.orders(&rig.reals()[1..]).write(director.host().as_ref(), "adit.toml");
    said.unwrap();
    director.json(&["reload", "--now"]).unwrap();
    let gone = [cut, spare];
    let (leaving, staying): (Vec<_>, Vec<_>) =
        sessions.into_iter().partition(|session| gone.contains(&session.server()));
    assert!(leaving.len() > MOVED);
    let alive: Vec<_> =
        leaving.iter().filter(|session| session.ask_name().is_ok()).map(Session::source).collect();
    assert!(alive.is_empty(), "not cut: {alive:?}");
    none_broken(&staying, "after others were cut");
}

/// Fresh clients, and where they go while the added server is there.
fn four_places(rig: &Rig, four: &adit_lab::Config) -> Vec<(SocketAddr, String)> {
    rig.placed(four, &rig.sources(100)).into_iter().collect()
}

fn keys_of_the_spare(rig: &Rig, places: &[(SocketAddr, String)]) -> Vec<SocketAddr> {
    let theirs = places.iter().filter(|(_, name)| name == rig.spare().name());
    let theirs: Vec<_> = theirs.map(|(client, _)| *client).take(MOVED).collect();
    assert!(theirs.len() >= MOVED / 2, "{} of 100", theirs.len());
    theirs
}
