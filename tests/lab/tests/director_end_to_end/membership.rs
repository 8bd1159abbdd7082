//! Real servers that come and go, and a director that is killed, while sessions are open.

use adit_lab::postgres::PORT;
use adit_lab::{Config, Director, SERVE_PORT};
use serde_json::Value;

use crate::rig::{Rig, none_broken};

const SESSIONS: u16 = 200;

/// As many keys of open sessions, at least, are placed on the server that is added.
const MOVED: usize = 20;

/// And so many sessions with databases besides.
const MOVED_DATABASES: usize = 5;

/// Takes a configuration in force, or with `--dry-run` looks at what that would do.
fn reload(director: &Director, config: &Config, option: &[&str]) -> Value {
    config.write(director.host().as_ref(), "adit.toml").unwrap();
    director.json(&[&["reload"], option].concat()).unwrap()
}

/// Connections that the changes whose text has `what` touch.
fn touched(answer: &Value, what: &str) -> u64 {
    let changes = answer["changes"].as_array().unwrap();
    let about: Vec<_> =
        changes.iter().filter(|change| change["what"].as_str().unwrap().contains(what)).collect();
    // One for each of the two services.
    assert_eq!((about.len(), changes.len()), (2, 2), "{what}: {answer}");
    about.iter().map(|change| change["connections"].as_u64().unwrap()).sum()
}

pub(crate) fn a_server_joins_and_leaves_and_the_director_is_killed_under_sessions(rig: &Rig) {
    let three = rig.both("maglev", rig.reals());
    let four = rig.both("maglev", &rig.lab().reals);
    let (spare, address) = (rig.spare().name(), rig.spare().address(false));
    let state = |director: &Director| -> Option<String> {
        let real = director.real("bytes", address).unwrap();
        real.map(|real| real["state"].as_str().unwrap().to_owned())
    };
    // Ports of the client whose keys belong to the fourth server as soon as that is there.
    let keys_of_the_spare = |candidates: u16, port: u16| -> Vec<_> {
        let places = rig.placed(&four, &rig.sources(candidates), port);
        places.into_iter().filter(|(_, name)| name == spare).map(|(source, _)| source).collect()
    };
    let mut moving_databases = keys_of_the_spare(80, PORT);
    assert!(moving_databases.len() >= MOVED_DATABASES, "{} of 80", moving_databases.len());
    moving_databases.truncate(MOVED_DATABASES);
    let moving = keys_of_the_spare(200, SERVE_PORT);
    assert!(moving.len() >= MOVED, "{} of 200", moving.len());

    let mut director = rig.start(&three);
    let all_moving = u16::try_from(moving_databases.len() + moving.len()).unwrap();
    let others = rig.sources(SESSIONS - all_moving);
    let mut sessions = rig.open(&others, rig.databases);
    sessions.extend(rig.open(&moving_databases, MOVED_DATABASES));
    sessions.extend(rig.open(&moving, 0));
    assert_eq!(sessions.len(), usize::from(SESSIONS));
    assert!(sessions.iter().all(|session| session.server() != spare));

    let dry = reload(&director, &four, &["--dry-run"]);
    assert_eq!(touched(&dry, &format!("real server {address} added")), 0);
    assert_eq!((&dry["applied"], state(&director)), (&Value::Bool(false), None), "a dry run");
    let done = reload(&director, &four, &[]);
    assert_eq!((&done["applied"], state(&director).as_deref()), (&Value::Bool(true), Some("up")));
    none_broken(&mut sessions, "after a server was added");
    let joining = keys_of_the_spare(60, SERVE_PORT);
    let (first, second) = joining.split_at(joining.len() / 2);
    let joined = rig.open(first, 0);
    assert!(!joined.is_empty());
    assert!(joined.iter().all(|session| session.server() == spare), "{joined:?}");
    sessions.extend(joined);

    // A guess would send those whose keys moved to the wrong server.
    director.kill().unwrap();
    director.start_again().unwrap();
    none_broken(&mut sessions, "after kill -9 and a restart");
    assert!(director.status().unwrap()["adopted"].as_u64() >= Some(sessions.len() as u64));
    assert_eq!(director.totals().unwrap()["rederived"], 0);

    let removed = format!("real server {address} removed");
    let dry = reload(&director, &three, &["--dry-run"]);
    assert_eq!(touched(&dry, &removed), first.len() as u64, "{dry}");
    reload(&director, &three, &[]);
    assert_eq!(state(&director).as_deref(), Some("draining"));
    none_broken(&mut sessions, "after a server was removed");
    let others = rig.open(second, 0);
    assert!(others.iter().all(|session| session.server() != spare), "a draining server got one");
    sessions.extend(others);

    // Sessions at what is taken out now are cut, and those that were draining; no others.
    let gone = [rig.reals()[0].name(), spare];
    let (mut leaving, mut staying): (Vec<_>, Vec<_>) =
        sessions.into_iter().partition(|session| gone.contains(&session.server()));
    assert!(leaving.len() > MOVED && staying.len() > MOVED);
    reload(&director, &rig.both("maglev", &rig.reals()[1..]), &["--now"]);
    leaving.retain_mut(|session| session.ask_name().is_ok());
    assert!(leaving.is_empty(), "not cut: {leaving:?}");
    none_broken(&mut staying, "after others were cut");
}
