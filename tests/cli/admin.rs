//! The admin interface without `adit`'s own client: bytes over the socket, as curl would send them,
//! held to docs/admin-api.md.

use crate::THREE;
use crate::lab::{Lab, lab};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Sends a request and leaves the conversation open.
fn send(lab: &Lab, request: &str) -> UnixStream {
    let mut stream = UnixStream::connect(lab.file("adit.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = format!("{request} HTTP/1.1\r\nHost: adit\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

/// Status and body of the answer to a request, whose type must be JSON.
fn ask(lab: &Lab, request: &str) -> (u16, Value) {
    let mut answer = String::new();
    send(lab, request).read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
    assert!(head.contains("content-type: application/json"), "{request}: {head}");
    (status, serde_json::from_str(body).unwrap())
}

/// The error of a request that must be answered with this status.
fn refused(lab: &Lab, status: u16, request: &str) -> String {
    let (answered, body) = ask(lab, request);
    assert_eq!(answered, status, "{request}: {body}");
    body["error"].as_str().unwrap().to_owned()
}

#[test]
fn answers_are_those_of_the_document() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    lab.start();
    let mode = std::fs::metadata(lab.file("adit.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "root's alone");

    let (status, body) = ask(&lab, "GET /v1/status");
    assert_eq!((status, &body["ledger_balances"]), (200, &Value::Bool(true)), "{body}");
    let (status, body) = ask(&lab, "GET /v1/services");
    assert_eq!((status, body["services"][0]["reals"].as_array().unwrap().len()), (200, 3));
    let (status, body) = ask(&lab, "GET /v1/drops");
    assert_eq!(status, 200);
    assert!(body["drops"].as_array().unwrap().iter().all(|drop| drop["meaning"].is_string()));
    let (status, body) = ask(&lab, "GET /v1/connections?limit=1");
    assert_eq!((status, &body["next"]), (200, &Value::Null));
    // Percent-encoded, as the document asks for.
    let (status, body) =
        ask(&lab, "GET /v1/explain?client=198.51.100.1%3A40000&vip=192.0.2.10%3A7&protocol=udp");
    assert_eq!((status, body["service"].as_str()), (200, Some("echo")), "{body}");

    // The one answer that is text.
    let mut answer = String::new();
    send(&lab, "GET /v1/metrics?compat=ipvs").read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    assert!(body.contains("\nadit_ledger_balances 1\n"), "{body}");
    assert!(body.contains("\nnode_ipvs_incoming_packets_total 0\n"), "{body}");

    assert!(refused(&lab, 400, "GET /v1/metrics?compat=lvs").contains("not ipvs"));
    assert!(refused(&lab, 400, "GET /v1/status?x=1").contains("`x`"));
    assert!(refused(&lab, 400, "GET /v1/connections?limit=many").contains("`limit`"));
    assert!(refused(&lab, 400, "GET /v1/explain").contains("`client` is missing"));
    assert!(refused(&lab, 404, "GET /v1/nothing").contains("/v1/nothing"));
    assert!(refused(&lab, 404, "GET /status").contains("/status"));
    assert!(refused(&lab, 405, "POST /v1/status").contains("takes GET"));
    assert!(refused(&lab, 405, "GET /v1/reload").contains("takes POST"));
}

#[test]
fn one_captures_at_a_time_and_bad_files_are_drawn() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    lab.start();
    let mut first = BufReader::new(send(&lab, "GET /v1/capture?seconds=600"));
    let mut line = String::new();
    first.read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 200 OK\r\n");
    assert!(refused(&lab, 409, "GET /v1/capture").contains("capture"));
    assert!(refused(&lab, 400, "GET /v1/capture?side=left").contains("side"));

    let (status, body) = ask(&lab, "POST /v1/reload?dry_run=true");
    assert_eq!((status, &body["applied"]), (200, &Value::Bool(false)), "{body}");
    lab.configure(&format!("colour = 1\n{THREE}"));
    let (status, body) = ask(&lab, "POST /v1/reload");
    assert_eq!(status, 422, "{body}");
    assert_eq!(body["problems"].as_array().unwrap().len(), 1, "{body}");
    assert!(body["drawn"].as_str().unwrap().contains("colour"), "{body}");
    let (status, body) = ask(&lab, "GET /v1/services");
    assert_eq!((status, body["services"][0]["name"].as_str()), (200, Some("echo")), "{body}");
}
