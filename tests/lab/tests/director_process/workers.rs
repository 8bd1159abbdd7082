//! Several queues: that the kernel and the workers share the traffic out by one rule, that sessions
//! outlive restarts with another number of workers, and which worker it was that did not go on.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use adit_lab::topology::vip;
use adit_lab::{Caller, Config, Director, Lab, SERVE_PORT, Service};
use serde_json::Value;

use crate::worker::{end_by_a_stuck, thread_named};
use crate::{clean_lab, echoes, start};

/// Sessions: that two workers have less than a tenth of them each is one chance in 10¹⁰.
const SESSIONS: u16 = 60;

/// By turns, so that nobody can guess where a session belongs.
fn config(lab: &Lab, workers: u16) -> Config {
    let service = Service::tcp("bytes", vip(SERVE_PORT)).scheduler("wrr").reals(&lab.reals);
    Config::new().service(service).set("workers", &workers.to_string())
}

fn open_sessions(lab: &Lab, first_port: u16) -> Vec<TcpStream> {
    let open = |port| {
        let source = SocketAddr::new(Ipv4Addr::new(10, 1, 0, 10).into(), port);
        let mut session = Caller::new(&lab.client, vip(SERVE_PORT)).from(source).echo().unwrap();
        assert!(echoes(&mut session), "from port {port}");
        session
    };
    (first_port..first_port + SESSIONS).map(open).collect()
}

fn broken(sessions: &mut [TcpStream]) -> usize {
    sessions.iter_mut().filter_map(|session| (!echoes(session)).then_some(())).count()
}

fn workers(director: &Director) -> Vec<Value> {
    director.status().unwrap()["workers"].as_array().unwrap().clone()
}

#[test]
fn sessions_are_shared_out_and_outlive_restarts_with_other_numbers_of_workers() {
    let lab = clean_lab();
    let mut director = start(&lab, &config(&lab, 2));
    let mut sessions = open_sessions(&lab, 20_000);
    let status = director.status().unwrap();
    assert_eq!(status["steering"], "by flow", "{status}");
    let totals = director.totals().unwrap();
    assert_eq!(totals["handed_over"], 0, "the kernel brought each packet to its owner: {totals:?}");
    for worker in workers(&director) {
        let forwarded = worker["totals"]["forwarded"].as_u64().unwrap();
        assert!(forwarded > u64::from(SESSIONS) / 2, "one worker has hardly any: {worker}");
    }

    // A reload reaches both, and another number of workers is refused by name.
    let two = Service::tcp("more", vip(SERVE_PORT + 1)).reals(&lab.reals);
    let said = director.reload(&config(&lab, 2).service(two.clone())).unwrap();
    assert!(said.success, "{}", said.text);
    assert_eq!(broken(&mut sessions), 0, "after a reload");
    let said = director.reload(&config(&lab, 1).service(two)).unwrap();
    assert!(!said.success && said.text.contains("workers"), "{}", said.text);

    // That left the file with one worker. By kill -9, so that nothing is put in order first. The
    // last restart takes the table over as it is, each worker its part.
    for (next, number) in [(4, 1), (2, 4), (2, 2), (2, 2)] {
        director.kill().unwrap();
        director.start_again().unwrap();
        let after = format!("after a restart with {number} workers: {}", director.log());
        assert_eq!(workers(&director).len(), number, "{after}");
        assert_eq!(broken(&mut sessions), 0, "{after}");
        let status = director.status().unwrap();
        assert!(status["adopted"].as_u64() >= Some(SESSIONS.into()), "{status}");
        let totals = director.totals().unwrap();
        for unknown in ["rederived", "resets_sent", "handed_over"] {
            assert_eq!(totals[unknown], 0, "{unknown} {after}");
        }
        assert_eq!(status["ledger_balances"], true, "{status}");
        // Refused, but the file is written.
        director.reload(&config(&lab, next)).unwrap();
    }
    sessions.extend(open_sessions(&lab, 21_000));
    assert_eq!(broken(&mut sessions), 0);
    assert!(director.terminate().unwrap().success(), "{}", director.log());
}

#[test]
fn views_show_all_workers_together() {
    let lab = clean_lab();
    let director = start(&lab, &config(&lab, 2));
    let mut sessions = open_sessions(&lab, 22_000);
    let shown = director.json(&["connections"]).unwrap();
    let shown = shown.as_array().unwrap().iter();
    let ports: BTreeSet<_> = shown.map(|c| c["client_port"].as_u64().unwrap()).collect();
    assert_eq!(ports, (22_000..22_000 + u64::from(SESSIONS)).collect());
    // Each is found, whichever worker has it; and where they go adds up.
    let list = director.json(&["list", "--stats"]).unwrap();
    let reals = list["services"][0]["reals"].as_array().unwrap();
    let sum = |field: &str| -> u64 {
        reals.iter().map(|real| real["counters"][field].as_u64().unwrap()).sum()
    };
    assert_eq!(sum("connections"), u64::from(SESSIONS), "{list}");
    let status = director.status().unwrap();
    let of = |what: &Value| what["totals"]["forwarded"].as_u64().unwrap();
    let parts: u64 = workers(&director).iter().map(of).sum();
    assert!(parts >= of(&status) && of(&status) >= sum("packets"), "{status} {list}");
    assert_eq!(broken(&mut sessions), 0);
}

#[test]
fn one_of_two_workers_that_is_stuck_takes_the_daemon_down_by_name() {
    let lab = clean_lab();
    let director = start(&lab, &config(&lab, 2));
    Caller::new(&lab.client, vip(SERVE_PORT)).whoami().unwrap();
    let last = end_by_a_stuck(&director, thread_named(&director, "adit-worker1"));
    assert!(last.contains("worker 1 ended: it is stuck since"), "which one is not said: {last}");
}
