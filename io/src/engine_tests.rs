//! Both engines on a real TAP: frames through, echoes back, no slot lost, errors named.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::egress::{bind_packet, open_socket, set_option};
use super::testing::{in_namespace, run, until};
use super::*;

/// Local experimental ethertype 2: frames of these tests, apart from the kernel's own.
const ETHERTYPE: u16 = 0x88b6;
/// Any path but the TAP.
const PATH: EgressId = EgressId(7);

fn open_tap() -> Tap {
    let config = TapConfig { name: "io-t".into(), mtu: 1500, queue_length: 4096, queues: 1 };
    Tap::open(&config).unwrap()
}

fn frame_number(tap: &Tap, number: u32, length: usize) -> Vec<u8> {
    let mut frame = vec![0; length.max(18)];
    frame[..6].copy_from_slice(&tap.peer_mac());
    frame[6..12].copy_from_slice(&tap.mac());
    frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
    frame[14..18].copy_from_slice(&number.to_be_bytes());
    frame
}

/// What the kernel's side of an interface does: sends frames into it and sees what comes out.
struct Outside {
    entry: OpenEgress,
    exit: OwnedFd,
}

impl Outside {
    fn of(interface: u32) -> Self {
        let entry = OpenEgress::open(&EgressTarget::Direct { interface }).unwrap();
        let exit = open_socket(libc::AF_PACKET, libc::SOCK_RAW, 0).unwrap();
        // Room for all frames of a test, so that none is lost on the way back.
        set_option(&exit, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20).unwrap();
        bind_packet(&exit, interface, ETHERTYPE).unwrap();
        Self { entry, exit }
    }

    fn send(&self, frame: &[u8]) {
        send(self.entry.as_raw_fd(), frame, MsgFlags::empty()).unwrap();
    }

    fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 2048];
        let length = recv(self.exit.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT).ok()?;
        frame.truncate(length);
        Some(frame)
    }
}

#[derive(Default)]
struct Echo<'a> {
    stop: Option<&'a AtomicBool>,
    /// Where frames go; `None`: they are released.
    egress: Option<EgressId>,
    /// Copies each frame into this many auxiliary slots and sends those instead.
    copies: usize,
    install: Vec<(EgressId, OpenEgress)>,
    asked: u64,
    /// Completed sends by errno, 0 for those that succeeded.
    completed: BTreeMap<i32, u64>,
    received: u64,
    sources: Vec<Source>,
    /// Frames of other sources, for the test's other thread.
    seen: Option<&'a AtomicU64>,
    aux_refused: u64,
    ticks: u64,
}

impl Handler for Echo<'_> {
    fn batch(&mut self, _: u64, egress: &mut EgressControl<'_>) {
        for (id, path) in self.install.drain(..) {
            egress.install(id, path).unwrap();
        }
    }

    fn frame(
        &mut self,
        source: Source,
        slot: &mut [u8],
        frame: Range<usize>,
        aux: &mut AuxSlots,
    ) -> Disposition {
        assert_eq!(frame.start, HEADROOM);
        if source != Source::Tap {
            self.sources.push(source);
            if let Some(seen) = self.seen {
                seen.fetch_add(1, Ordering::Relaxed);
            }
            return Disposition::Release;
        }
        let bytes = &mut slot[frame.clone()];
        if bytes[12..14] != ETHERTYPE.to_be_bytes() {
            return Disposition::Release;
        }
        self.received += 1;
        let [to, from] = bytes[..12].as_chunks_mut::<6>().0 else { panic!("12 bytes are 2 by 6") };
        std::mem::swap(to, from);
        let Some(egress) = self.egress else { return Disposition::Release };
        if self.copies == 0 {
            self.asked += 1;
            return Disposition::Send { egress, range: frame, token: 1 };
        }
        for _ in 0..self.copies {
            let Some(copy) = aux.take() else {
                self.aux_refused += 1;
                continue;
            };
            aux.bytes_mut(&copy)[frame.clone()].copy_from_slice(&slot[frame.clone()]);
            self.asked += 1;
            aux.send(copy, egress, frame.clone(), 1);
        }
        Disposition::Release
    }

    fn sent(&mut self, token: u32, result: Result<(), Errno>) {
        assert_eq!(token, 1);
        let errno = result.err().map_or(0, |errno| errno as i32);
        *self.completed.entry(errno).or_default() += 1;
    }

    fn tick(&mut self, _: u64, _: &mut AuxSlots, _: &IoCounters) {
        self.ticks += 1;
    }

    fn stop_requested(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }
}

struct Stop<'a> {
    stop: &'a AtomicBool,
    waker: &'a Waker,
}

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
    }
}

/// Runs `engine` with `handler` while `outside` acts, then stops it; no slot may be missing.
fn drive<'a>(
    mut engine: Engine,
    mut handler: Echo<'a>,
    stop: &'a AtomicBool,
    waker: &Waker,
    outside: impl FnOnce(),
) -> (Echo<'a>, IoCounters) {
    handler.stop = Some(stop);
    let all = engine.slot_balance();
    let counters = std::thread::scope(|scope| {
        let worker = scope.spawn(|| engine.run(&mut handler));
        {
            let _stops_the_worker_even_on_panic = Stop { stop, waker };
            outside();
        }
        worker.join().unwrap().unwrap()
    });
    let (main, aux, lent) = engine.slot_balance();
    assert_eq!((main + lent, aux), (all.0 + all.2, all.1), "slots leaked");
    assert_eq!(handler.completed.values().sum::<u64>(), handler.asked, "each send once");
    (handler, counters)
}

fn both_engines(name: &str, test: impl Fn(EngineKind) + Sync) {
    for kind in [EngineKind::Multishot, EngineKind::Poll] {
        in_namespace(name, || test(kind));
    }
}

fn build(tap: &Tap, kind: EngineKind, slots: usize) -> (Engine, Waker) {
    let waker = Waker::new().unwrap();
    let config = EngineConfig { slots, aux_slots: 64, ..EngineConfig::new(kind, waker.clone()) };
    (Engine::build(tap, config).unwrap(), waker)
}

#[test]
fn echoes_every_frame_in_order() {
    both_engines("echoes_every_frame_in_order", |kind| {
        let tap = open_tap();
        let outside = Outside::of(tap.index());
        let (engine, waker) = build(&tap, kind, 256);
        let stop = AtomicBool::new(false);
        let handler = Echo { egress: Some(EgressId::TAP), ..Echo::default() };
        let (handler, counters) = drive(engine, handler, &stop, &waker, || {
            // Waves that fit the receiving socket's buffer, so that none is lost there.
            for wave in 0..100u32 {
                let numbers = wave * 100..(wave + 1) * 100;
                let length = |number: u32| 18 + (number as usize * 37) % 1497;
                for number in numbers.clone() {
                    outside.send(&frame_number(&tap, number, length(number)));
                }
                for number in numbers {
                    let mut sent = frame_number(&tap, number, length(number));
                    sent[..6].copy_from_slice(&tap.mac());
                    sent[6..12].copy_from_slice(&tap.peer_mac());
                    let back = until("an echo", || outside.receive());
                    assert_eq!(back, sent);
                }
            }
        });
        assert_eq!(handler.received, 10_000);
        assert_eq!(handler.completed, BTreeMap::from([(0, 10_000)]));
        assert!(counters.tap_frames >= 10_000);
        assert_eq!(outside.receive(), None);
    });
}

#[test]
fn a_shortage_of_slots_stops_and_resumes_reading() {
    both_engines("a_shortage_of_slots_stops_and_resumes_reading", |kind| {
        let tap = open_tap();
        let outside = Outside::of(tap.index());
        let (engine, waker) = build(&tap, kind, 4);
        // All frames wait in the TAP before reading begins, more than there are slots.
        for number in 0..2000 {
            outside.send(&frame_number(&tap, number, 64));
        }
        let stop = AtomicBool::new(false);
        let handler = Echo { egress: Some(EgressId::TAP), ..Echo::default() };
        let (handler, counters) = drive(engine, handler, &stop, &waker, || {
            for number in 0..2000u32 {
                let back = until("an echo", || outside.receive());
                assert_eq!(back[14..18], number.to_be_bytes());
            }
        });
        assert_eq!(handler.completed, BTreeMap::from([(0, 2000)]));
        if kind == EngineKind::Multishot {
            assert!(counters.out_of_slots > 0, "{counters:?}");
            assert!(counters.armed > 1, "{counters:?}");
        }
    });
}

#[test]
fn direct_egress_carries_frames_and_failed_sends_return_their_slots() {
    both_engines("direct_egress_carries_frames", |kind| {
        run("ip link add io-a type veth peer name io-b");
        run("ip link set io-a up");
        run("ip link set io-b up");
        let tap = open_tap();
        let entry = Outside::of(tap.index());
        let exit = Outside::of(interface_index("io-b").unwrap());
        let target = EgressTarget::Direct { interface: interface_index("io-a").unwrap() };
        let (engine, waker) = build(&tap, kind, 64);
        let stop = AtomicBool::new(false);
        let path = OpenEgress::open(&target).unwrap();
        let handler = Echo { egress: Some(PATH), install: vec![(PATH, path)], ..Echo::default() };
        let (handler, _) = drive(engine, handler, &stop, &waker, || {
            for number in 0..500u32 {
                entry.send(&frame_number(&tap, number, 100));
                let through = until("a frame", || exit.receive());
                assert_eq!(through[14..18], number.to_be_bytes());
            }
            run("ip link set io-a down");
            for number in 500..1000 {
                entry.send(&frame_number(&tap, number, 100));
            }
            // The TAP's own frames prove that the worker is past those it has dropped.
        });
        let ok = handler.completed.get(&0).copied().unwrap_or(0);
        let down = handler.completed.get(&(Errno::ENETDOWN as i32)).copied().unwrap_or(0);
        assert_eq!(ok, 500, "{:?}", handler.completed);
        assert_eq!(ok + down, handler.asked, "{:?}", handler.completed);
    });
}

#[test]
fn a_path_that_is_not_installed_is_enxio() {
    both_engines("a_path_that_is_not_installed_is_enxio", |kind| {
        let tap = open_tap();
        let outside = Outside::of(tap.index());
        let (engine, waker) = build(&tap, kind, 16);
        for number in 0..200 {
            outside.send(&frame_number(&tap, number, 64));
        }
        let stop = AtomicBool::new(false);
        // Two of four copies find an installed path (the TAP is always one), none of these does.
        let handler = Echo { egress: Some(EgressId(9)), copies: 2, ..Echo::default() };
        let (handler, _) = drive(engine, handler, &stop, &waker, || {
            outside.send(&frame_number(&tap, 200, 64));
            until("the queue to be read", || queue_is_empty(&tap).then_some(()));
        });
        assert!(handler.received > 0);
        let refused = BTreeMap::from([(Errno::ENXIO as i32, handler.received * 2)]);
        assert_eq!(handler.completed, refused);
    });
}

/// No frame waits in the TAP's queue.
fn queue_is_empty(tap: &Tap) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut ask = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
    poll(&mut ask, PollTimeout::ZERO).unwrap() == 0
}

#[test]
fn auxiliary_slots_send_and_come_back() {
    both_engines("auxiliary_slots_send_and_come_back", |kind| {
        let tap = open_tap();
        let outside = Outside::of(tap.index());
        let (engine, waker) = build(&tap, kind, 64);
        let stop = AtomicBool::new(false);
        let handler = Echo { egress: Some(EgressId::TAP), copies: 3, ..Echo::default() };
        let (handler, _) = drive(engine, handler, &stop, &waker, || {
            for number in 0..300u32 {
                outside.send(&frame_number(&tap, number, 200));
                for _ in 0..3 {
                    let back = until("a copy", || outside.receive());
                    assert_eq!(back[14..18], number.to_be_bytes());
                }
            }
        });
        assert_eq!(handler.completed, BTreeMap::from([(0, 900)]));
        assert_eq!(handler.aux_refused, 0);
    });
}

#[test]
fn a_deleted_tap_ends_the_engine_with_an_error() {
    both_engines("a_deleted_tap_ends_the_engine_with_an_error", |kind| {
        let tap = open_tap();
        let (mut engine, _waker) = build(&tap, kind, 64);
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| engine.run(&mut Echo::default()).unwrap_err());
            run("ip link del io-t");
            let error = worker.join().unwrap();
            assert!(matches!(error, EngineError::TapGone(_)), "{error}");
        });
    });
}

#[test]
fn ticks_and_wakes_without_traffic() {
    both_engines("ticks_and_wakes_without_traffic", |kind| {
        let tap = open_tap();
        let (engine, waker) = build(&tap, kind, 16);
        let stop = AtomicBool::new(false);
        let before = clock::boottime_ns();
        let (handler, _) = drive(engine, Echo::default(), &stop, &waker, || {
            until("four ticks' time", || {
                (clock::boottime_ns() > before + 210_000_000).then_some(())
            });
        });
        assert!((3..=6).contains(&handler.ticks), "{} ticks in 210 ms", handler.ticks);
    });
}

#[test]
fn the_probe_chooses_what_works_here() {
    in_namespace("the_probe_chooses_what_works_here", || {
        // Else the kernel's own solicitations come at any time.
        run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
        let tap = open_tap();
        let auto = choose(IoPreference::Auto, &tap).unwrap();
        println!("auto: {} ({})", auto.engine, auto.reason);
        match choose(IoPreference::Multishot, &tap) {
            Ok(choice) => assert_eq!(
                (choice.engine, auto.engine),
                (EngineKind::Multishot, EngineKind::Multishot)
            ),
            Err(error) => {
                assert!(matches!(error, EngineError::NoMultishot(_)), "{error}");
                assert_eq!(auto.engine, EngineKind::Poll);
            }
        }
        assert_eq!(choose(IoPreference::Poll, &tap).unwrap().engine, EngineKind::Poll);
        assert!(queue_is_empty(&tap), "the probe leaves nothing behind");
    });
}

#[test]
fn frames_of_other_sockets_come_with_their_source() {
    both_engines("frames_of_other_sockets_come_with_their_source", |kind| {
        run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
        run("ip link add io-a address 02:00:00:00:00:0a type veth peer name io-b");
        run("ip link set io-a up");
        run("ip link set io-b up");
        let tap = open_tap();
        let outside = Outside::of(interface_index("io-b").unwrap());
        let waker = Waker::new().unwrap();
        let config = EngineConfig {
            slots: 8,
            neighbours: vec![NeighbourSockets::open(interface_index("io-a").unwrap()).unwrap()],
            outer_errors: Some(OuterErrorSockets::open().unwrap()),
            ..EngineConfig::new(kind, waker.clone())
        };
        let engine = Engine::build(&tap, config).unwrap();
        let mut request = vec![0xff; 60];
        request[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        let mut error = vec![0; 80];
        error[..6].copy_from_slice(&[2, 0, 0, 0, 0, 10]);
        error[12..15].copy_from_slice(&[8, 0, 0x45]);
        error[23] = 1; // ICMP
        error[34] = 3; // unreachable
        error[42 + 9] = 4; // about IP in IP
        let stop = AtomicBool::new(false);
        let seen = AtomicU64::new(0);
        let handler = Echo { seen: Some(&seen), ..Echo::default() };
        let (handler, counters) = drive(engine, handler, &stop, &waker, || {
            // One after the other, so that each socket runs empty and is asked again.
            for count in 1..=100 {
                outside.send(&request);
                outside.send(&error);
                until("both", || (seen.load(Ordering::Relaxed) == 2 * count).then_some(()));
            }
        });
        let count = |source| handler.sources.iter().filter(|&&is| is == source).count();
        assert_eq!(count(Source::Neighbour { interface: 0 }), 100);
        assert_eq!(count(Source::OuterError), 100);
        assert_eq!(counters.source_frames, 200);
    });
}
