//! Metrics of a running director: over the admin socket, over HTTP, and as rates.

use crate::THREE;
use crate::lab::{ADIT, Lab, eventually, lab};
use crate::testing::{skipped, test_name};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const ADDRESS: &str = "127.0.0.1:9105";
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Less than a slow reader may take, so that an answer within it has not waited for one.
const AT_ONCE: Duration = Duration::from_secs(8);

/// The configuration with a listener.
fn listening() -> String {
    format!("metrics = \"{ADDRESS}\"\n{THREE}")
}

/// A conversation with the listener, begun by these bytes.
fn begin(lab: &Lab, bytes: &str) -> TcpStream {
    let mut stream = lab.socket_on_director(|| TcpStream::connect(ADDRESS).unwrap());
    stream.set_read_timeout(Some(AT_ONCE)).unwrap();
    stream.write_all(bytes.as_bytes()).unwrap();
    stream
}

/// Head and body of the answer to a request.
fn ask(lab: &Lab, request: &str) -> (String, String) {
    let head = format!("{request} HTTP/1.1\r\nHost: adit\r\n\r\n");
    let mut answer = String::new();
    begin(lab, &head).read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// Values of the series that begin with this.
fn values(text: &str, series: &str) -> Vec<u64> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(series));
    lines.map(|rest| rest.rsplit(' ').next().unwrap().parse().unwrap()).collect()
}

/// The one value of the series that begin with this.
fn value(text: &str, series: &str) -> u64 {
    let found = values(text, series);
    assert_eq!(found.len(), 1, "{series}: {text}");
    found[0]
}

fn promtool() -> Option<PathBuf> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/promtool");
    let places = [PathBuf::from("promtool"), fetched];
    places.into_iter().find(|tool| Command::new(tool).arg("--version").output().is_ok())
}

#[test]
fn what_is_exposed_is_what_happened_and_well_formed() {
    let Some(mut lab) = lab() else { return };
    lab.configure(&listening());
    lab.start();
    for port in 40_000..40_020 {
        lab.datagram(&format!("198.51.100.1:{port}"), "192.0.2.10:7");
    }
    for port in 40_000..40_005 {
        lab.datagram(&format!("198.51.100.1:{port}"), "192.0.2.10:9");
    }
    let text = eventually("20 flows and 5 drops", || {
        let text = lab.ok("metrics");
        let dropped =
            value(&text, "adit_dropped_packets_total{worker=\"0\",reason=\"no_service\"}");
        let flows: u64 = values(&text, "adit_flow_table_flows{").iter().sum();
        (dropped == 5 && flows == 20).then_some(text)
    });
    assert_eq!(value(&text, "adit_scheduled_flows_total"), 20);
    assert_eq!(values(&text, "adit_real_server_connections_total{").iter().sum::<u64>(), 20);
    assert_eq!(values(&text, "adit_connections{").iter().sum::<u64>(), 20);
    assert_eq!(value(&text, "adit_flow_table_slots"), 4096);
    assert_eq!(value(&text, "adit_service_eligible_real_servers{service=\"echo\""), 3);
    let reasons = values(&text, "adit_dropped_packets_total{").len();
    assert_eq!(reasons, lab.json("drops --all").as_array().unwrap().len(), "also those at 0");
    let hash = lab.json("list")["status"]["config_hash"].as_str().unwrap().to_owned();
    assert!(text.contains(&format!("config_hash=\"{hash}\"")), "{text}");

    // The same names by each way, and those of IPVS where they are asked for.
    let names = |text: &str| -> Vec<String> {
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types.map(str::to_owned).collect()
    };
    let (head, body) = ask(&lab, "GET /metrics");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains(&format!("content-type: {TEXT_FORMAT}\r\n")), "{head}");
    assert_eq!(names(&body), names(&text));
    assert!(!names(&text).iter().any(|name| name.starts_with("node_ipvs_")));
    let (_, ipvs) = ask(&lab, "GET /metrics?compat=ipvs");
    assert_eq!(names(&ipvs), names(&lab.ok("metrics --compat-ipvs")));
    assert_eq!(value(&ipvs, "node_ipvs_connections_total"), 20);
    let weights = values(&ipvs, "node_ipvs_backend_weight{local_address=\"192.0.2.10\"");
    assert_eq!(weights, [100, 100, 100]);

    let Some(promtool) = promtool() else {
        return skipped(&test_name(), "there is no promtool: make deps-promtool");
    };
    let mut check = Command::new(promtool);
    check.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut check = check.spawn().unwrap();
    check.stdin.take().unwrap().write_all(ipvs.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn the_listener_answers_nothing_else() {
    let Some(mut lab) = lab() else { return };
    lab.configure(&listening());
    lab.start();
    for (request, status) in [
        ("GET /", 404),
        ("GET /v1/status", 404),
        ("POST /v1/reload", 404),
        ("POST /metrics", 405),
        ("GET /metrics?colour=1", 400),
        ("GET /metrics?compat=lvs", 400),
    ] {
        let (head, body) = ask(&lab, request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {head}");
        assert!(!body.contains("adit_build_info"), "{request}: {body}");
    }
    // Only a restart moves it.
    lab.configure(THREE);
    let said = lab.refused("reload");
    assert!(said.contains("`metrics` cannot change while running"), "{said}");
    assert!(lab.refused("metrics --json").contains("text format"));
}

#[test]
fn slow_readers_are_in_nobodys_way() {
    let Some(mut lab) = lab() else { return };
    lab.configure(&listening());
    lab.start();
    // Many that say nothing, many that stop in their request, and many that read nothing.
    let words = ["", "GET /metrics HTTP/1.1\r\nHo", "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"];
    let slow: Vec<TcpStream> =
        words.iter().cycle().take(120).map(|word| begin(&lab, word)).collect();
    let (head, body) = ask(&lab, "GET /metrics");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(body.contains("adit_build_info"));
    // The first had to go for those that came later, and the last have to go in the end.
    let mut first = &slow[0];
    // Signals to this process, such as a child's end, interrupt a single `read`.
    let gone = first.read_to_end(&mut Vec::new());
    assert!(
        matches!(&gone, Ok(0))
            || gone.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset)
    );
    // One of the last, which has said nothing.
    let mut last = &slow[117];
    last.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!(last.read_to_end(&mut Vec::new()).unwrap(), 0);
}

#[test]
fn a_listener_that_is_taken_refuses_the_start_before_the_host_is_changed() {
    let Some(lab) = lab() else { return };
    lab.configure(&listening());
    let taken = lab.socket_on_director(|| TcpListener::bind(ADDRESS).unwrap());
    let said = lab.refused("run");
    let wanted = format!("cannot listen on {ADDRESS} for `metrics`: Address already in use");
    assert!(said.contains(&wanted), "{said}");
    assert!(!said.contains("io engine chosen"), "there was a TAP already: {said}");
    assert_eq!(lab.on_director("ip route show 192.0.2.10"), "");
    assert!(!lab.on_director("ip link show").contains("adit0"));
    assert!(!lab.file("adit.sock").exists(), "it leaves nothing behind");
    drop(taken);
}

/// `list --rate` that goes on.
fn watch(lab: &Lab, options: &[&str]) -> Child {
    let mut watch = Command::new(ADIT);
    watch.arg("--socket").arg(lab.file("adit.sock")).args(options);
    watch.args(["list", "--rate", "--watch"]).stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn rates_are_those_of_the_interval() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    lab.start();
    // What came before the first reading does not count.
    for port in 40_000..40_010 {
        lab.datagram(&format!("198.51.100.1:{port}"), "192.0.2.10:7");
    }
    eventually("10 connections", || Some(lab.connections()).filter(|found| found.len() == 10));
    let quiet = lab.json("list --rate");
    assert_eq!(quiet["services"][0]["packets_per_second"], 0.0, "{quiet}");
    assert!(quiet["seconds"].as_f64().unwrap() >= 1.0, "{quiet}");

    // Readings under traffic may fall in the middle of a packet's accounting; over all intervals
    // nothing is lost or counted twice.
    let mut watching = watch(&lab, &["--json"]);
    let output = BufReader::new(watching.stdout.take().unwrap());
    let mut readings = serde_json::Deserializer::from_reader(output).into_iter::<Value>();
    assert_eq!(readings.next().unwrap().unwrap()["services"][0]["packets_per_second"], 0.0);
    const SENT: f64 = 20.0;
    for port in 41_000..41_020 {
        lab.datagram(&format!("198.51.100.1:{port}"), "192.0.2.10:7");
    }
    let rate = |of: &Value, what: &str| of[what].as_f64().unwrap();
    let [mut connections, mut packets, mut bytes] = [0.0; 3];
    for reading in readings.by_ref().take(30) {
        let reading = reading.unwrap();
        let service = &reading["services"][0];
        let seconds = rate(&reading, "seconds");
        connections += rate(service, "connections_per_second") * seconds;
        packets += rate(service, "packets_per_second") * seconds;
        bytes += rate(service, "bytes_per_second") * seconds;
        let reals = service["reals"].as_array().unwrap();
        let sum: f64 = reals.iter().map(|real| rate(real, "packets_per_second")).sum();
        assert!((sum - rate(service, "packets_per_second")).abs() < 1e-6, "{reading}");
        if packets > SENT - 0.5 && bytes > 32.0 * SENT - 0.5 {
            break;
        }
    }
    watching.kill().unwrap();
    watching.wait().unwrap();
    // 4 bytes each, in UDP in IPv4.
    for (found, wanted) in [(connections, SENT), (packets, SENT), (bytes, 32.0 * SENT)] {
        assert!((found - wanted).abs() < 1e-6, "{connections} {packets} {bytes}");
    }

    // It goes on until it is interrupted.
    let mut watching = watch(&lab, &[]);
    let lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let heads = lines.map(Result::unwrap).filter(|line| line.contains("InPPS"));
    assert_eq!(heads.take(2).count(), 2, "it ended");
    watching.kill().unwrap();
    watching.wait().unwrap();

    let shown = lab.ok("list --rate echo");
    assert!(shown.contains("CPS") && shown.contains("  -> 10.0.0.4:7"), "{shown}");
    assert!(lab.refused("list --rate nobody").contains("there is no service nobody"));
}
