use super::super::model::tests::reading;
use super::super::model::{Reading, Sort};
use super::*;
use crate::control::admin::api::{
    Drop, FlowsView, OwnedFinding, RealView, ServiceView, Status, sample,
};
use crate::dataplane::counters::{DestinationReading, WorkerReading};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

/// A model of a busy director: one IPv4 service with so many real servers and one IPv6 service with
/// two, two readings apart by two seconds.
pub(crate) fn busy(reals: u32) -> Model {
    let mut model = Model::new("/run/adit/adit.sock", Duration::from_secs(2), true);
    model.update(busy_reading(reals, 1));
    model.update(busy_reading(reals, 2));
    model
}

/// The reading after `times` times two seconds.
fn busy_reading(reals: u32, times: u64) -> Reading {
    let real = |number: u32| {
        let n = u64::from(number);
        let counters = DestinationReading {
            connections: times * n * 5,
            active: n * 7 % 11,
            inactive: n % 3,
            packets: times * n * 1000,
            bytes: times * n * 700_000,
        };
        let address = format!("10.20.{}.{}", number / 250, 1 + number % 250);
        RealView { counters, ..sample::real(&address) }
    };
    let mut v4: Vec<RealView> = (1..=reals).map(real).collect();
    for (real, (state, effective)) in
        v4.iter_mut().zip([("up", 75), ("drained", 0), ("down", 0), ("overloaded", 100)])
    {
        (real.state, real.effective_weight) = (state.to_owned(), effective);
    }
    let mut v6 = vec![
        RealView {
            counters: real(3).counters,
            ..sample::real("2001:db8:aaaa:bbbb:cccc:dddd:eeee:1")
        },
        RealView {
            egress: "kernel: an IPsec policy may apply".to_owned(),
            ..sample::real("fd00::2")
        },
    ];
    v6[0].path_mtu = 1280;
    let services = vec![
        sample::service("orders-read", "198.51.100.10", v4),
        ServiceView {
            scheduler: "wlc".to_owned(),
            ports: "80,443".to_owned(),
            ..sample::service("a-service-with-quite-a-long-name", "2001:db8:100::10", v6)
        },
    ];
    let totals = WorkerReading {
        received: times * 123_456,
        forwarded: times * 120_000,
        replied: times * 3,
        passed: times,
        received_bytes: times * 80_000_000,
        ..WorkerReading::default()
    };
    let finding = |severity: &str, message: &str| OwnedFinding {
        severity: severity.to_owned(),
        message: message.to_owned(),
        help: String::new(),
    };
    let status = Status {
        version: "0.1.0".to_owned(),
        pid: 7,
        engine: "multishot".to_owned(),
        uptime_seconds: 11_045 + times * 2,
        max_connections: 1_000_000,
        active: 12_000,
        inactive: 345,
        flows: FlowsView {
            half_open: 40,
            unproven: 300,
            established: 12_000,
            closing_fin: 4,
            closing_rst: 1,
        },
        totals,
        dropped: times * 3453,
        warnings: vec![
            finding("error", "the next hop of 10.20.0.3 does not answer"),
            finding("warning", "no hash_key_file: the hash key is a documented constant"),
        ],
        ..sample::status()
    };
    let drop = |reason: &str, meaning: &str, count| Drop {
        reason: reason.to_owned(),
        meaning: meaning.to_owned(),
        count,
    };
    let drops = vec![
        drop("no_service", "no service listens on this port of a VIP", times * 3000),
        drop("bad_checksum", "an IPv4 header's checksum is wrong", 450 + times),
        drop("table_full", "the flow table is full of established flows", 0),
        drop("egress_full", "the device's queue was full", 2),
    ];
    Reading { at: Duration::from_secs(times * 2), status, services, drops }
}

/// What a terminal of this size shows.
fn shown(model: &Model, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(model, frame.area(), frame.buffer_mut())).unwrap();
    terminal.backend().to_string()
}

#[test]
fn a_busy_director_on_screens_of_all_sizes() {
    let mut model = busy(5);
    insta::assert_snapshot!("busy_80x24", shown(&model, 80, 24));
    insta::assert_snapshot!("busy_120x40", shown(&model, 120, 40));
    insta::assert_snapshot!("busy_40x10", shown(&model, 40, 10));
    model.sort = Sort::Bits;
    model.paused = true;
    model.update(busy_reading(4, 3));
    insta::assert_snapshot!("sorted_and_paused_80x24", shown(&model, 80, 24));
}

#[test]
fn many_real_servers_scroll() {
    let mut model = busy(500);
    insta::assert_snapshot!("many_80x24", shown(&model, 80, 24));
    model.scroll = last_scroll(&model, Rect::new(0, 0, 80, 24));
    insta::assert_snapshot!("many_at_the_end_80x24", shown(&model, 80, 24));
    // Further than there is: the same.
    let at_end = shown(&model, 80, 24);
    model.scroll = usize::MAX;
    assert_eq!(shown(&model, 80, 24), at_end);
}

#[test]
fn without_services_without_a_director_and_without_an_answer() {
    let mut model = Model::new("/run/adit/adit.sock", Duration::from_secs(1), true);
    insta::assert_snapshot!("waiting_40x10", shown(&model, 40, 10));
    model.unanswered(Duration::from_secs(1), "no director listens on /run/adit/adit.sock: refused");
    insta::assert_snapshot!("nobody_80x24", shown(&model, 80, 24));
    let mut empty = reading(2, 1, 0);
    empty.services.clear();
    empty.drops.clear();
    model.update(empty);
    insta::assert_snapshot!("empty_80x24", shown(&model, 80, 24));
    let mut model = busy(2);
    model.unanswered(Duration::from_secs(5), "no director listens on /run/adit/adit.sock: refused");
    model.unanswered(Duration::from_secs(8), "no director listens on /run/adit/adit.sock: refused");
    insta::assert_snapshot!("gone_80x24", shown(&model, 80, 24));
}

#[test]
fn help_is_shown() {
    let mut model = busy(2);
    model.help = true;
    insta::assert_snapshot!("help_80x24", shown(&model, 80, 24));
}

#[test]
fn no_size_and_no_state_panics() {
    let mut models = vec![busy(0), busy(3), busy(60)];
    models.push(Model::new("", Duration::from_secs(1), false));
    let mut gone = busy(1);
    gone.unanswered(Duration::from_secs(9), "gone");
    models.push(gone);
    for model in &mut models {
        for help in [false, true] {
            model.help = help;
            for (width, height) in (0..30).flat_map(|w| (0..16).map(move |h| (w * 5, h * 2))) {
                let area = Rect::new(0, 0, width, height);
                draw(model, area, &mut Buffer::empty(area));
                // A screen that shrank since it was looked at.
                let smaller = Rect::new(0, 0, width / 2, height / 2);
                draw(model, area, &mut Buffer::empty(smaller));
            }
        }
    }
}

#[test]
fn colours_are_there_when_asked_for_and_never_else() {
    let area = Rect::new(0, 0, 120, 40);
    let coloured = |model: &Model| {
        let mut out = Buffer::empty(area);
        draw(model, area, &mut out);
        out.content.iter().filter(|cell| (cell.fg, cell.bg) != (Color::Reset, Color::Reset)).count()
    };
    let mut model = busy(5);
    model.unanswered(Duration::from_secs(9), "gone");
    assert!(coloured(&model) > 50);
    model.colours = false;
    assert_eq!(coloured(&model), 0);
}

#[test]
fn a_frame_as_text_has_everything() {
    let text = text(&busy(50), 100);
    assert_eq!(text.lines().count(), 4 + (1 + 52 + 2) + (1 + 3) + (1 + 2), "{text}");
    assert!(text.contains("10.20.0.51") && text.contains("egress_full"), "{text}");
    assert!(text.lines().all(|line| Span::raw(line).width() <= 100 && line.trim_end() == line));
    assert!(!text.contains("q quit"));
    // More than a buffer holds is cut, not a panic.
    let longest = super::text(&busy(5000), 200);
    assert_eq!(longest.lines().count(), 325);
}
