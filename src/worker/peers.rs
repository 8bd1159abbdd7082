//! Frames on their way from one worker to another: a bounded ring in front of each, whose buffers
//! are made at the start. Nobody waits for anybody: where a ring is full, the frame is dropped and
//! counted.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crossbeam_queue::ArrayQueue;

use crate::{
    dataplane::verdict::HandOver,
    io::{HEADROOM, Waker},
};

/// Frames that may wait for one worker: two of the engine's batches, so that a worker that is in the
/// middle of a long one finds its share of the next. 0.8 MB at an MTU of 1500.
const WAITING: usize = 512;
/// Frames that a worker takes from its ring before it looks at its own queue again.
const BUDGET: usize = 64;

/// A frame that was handed over.
pub(super) struct Parcel {
    pub(super) handed: HandOver,
    /// The frame's length, behind [`HEADROOM`] bytes of the buffer.
    pub(super) length: usize,
    pub(super) buffer: Box<[u8]>,
}

/// What waits for one worker.
struct Inbox {
    waiting: ArrayQueue<Parcel>,
    free: ArrayQueue<Box<[u8]>>,
    /// Set by who leaves something, taken back by the worker before it looks: so it is woken once
    /// for all that it finds.
    rung: AtomicBool,
    waker: Waker,
}

/// One worker's end: its own inbox, and those of the others.
pub struct Peers {
    inboxes: Arc<[Inbox]>,
    number: usize,
    /// Those that got something since the last [`Peers::ring`].
    to_ring: Box<[bool]>,
}

impl Peers {
    /// The ends of workers that are woken by `wakers`, in the order of their numbers. Frames are of
    /// up to `frame_capacity` bytes. One worker alone has no ring.
    pub fn of(wakers: &[Waker], frame_capacity: usize) -> Vec<Self> {
        let room = if wakers.len() > 1 { WAITING } else { 0 };
        let inbox = |waker: &Waker| {
            // A queue must have a place, even where it is never used.
            let free = ArrayQueue::new(room.max(1));
            for _ in 0..room {
                let full = free.push(vec![0; HEADROOM + frame_capacity].into_boxed_slice());
                debug_assert!(full.is_ok(), "as many places as buffers");
            }
            let waiting = ArrayQueue::new(room.max(1));
            Inbox { waiting, free, rung: AtomicBool::new(false), waker: waker.clone() }
        };
        let inboxes: Arc<[Inbox]> = wakers.iter().map(inbox).collect();
        let peers = |number| Self {
            inboxes: Arc::clone(&inboxes),
            number,
            to_ring: vec![false; wakers.len()].into(),
        };
        (0..wakers.len()).map(peers).collect()
    }

    /// Leaves a copy of a frame for another worker. False when its ring is full.
    pub(super) fn hand_over(&mut self, handed: HandOver, frame: &[u8]) -> bool {
        let to = usize::from(handed.to);
        let Some(inbox) = self.inboxes.get(to) else { return false };
        let Some(mut buffer) = inbox.free.pop() else { return false };
        let length = frame.len();
        let Some(room) = buffer.get_mut(HEADROOM..HEADROOM + length) else {
            inbox.give_back(buffer);
            return false;
        };
        room.copy_from_slice(frame);
        let left = inbox.waiting.push(Parcel { handed, length, buffer });
        debug_assert!(left.is_ok(), "as many places as buffers");
        self.to_ring[to] = true;
        left.is_ok()
    }

    /// Wakes those that got something.
    pub(super) fn ring(&mut self) {
        for (inbox, due) in self.inboxes.iter().zip(&mut self.to_ring) {
            if std::mem::take(due) && !inbox.rung.swap(true, Ordering::AcqRel) {
                inbox.waker.wake();
            }
        }
    }

    /// Begins to take what others have left; how many frames may be taken now.
    pub(super) fn open(&self) -> usize {
        let inbox = &self.inboxes[self.number];
        // Before the frames are looked at: who leaves one from now on wakes again. Even where none
        // is there, since it may have been taken before its bell was rung.
        if inbox.rung.load(Ordering::Relaxed) {
            inbox.rung.swap(false, Ordering::AcqRel);
        }
        if inbox.waiting.is_empty() { 0 } else { BUDGET }
    }

    /// The next frame that others have left.
    pub(super) fn next(&self) -> Option<Parcel> {
        self.inboxes[self.number].waiting.pop()
    }

    /// Whether more frames wait.
    pub(super) fn has_more(&self) -> bool {
        !self.inboxes[self.number].waiting.is_empty()
    }

    /// Returns the buffer of a frame that was taken.
    pub(super) fn give_back(&self, buffer: Box<[u8]>) {
        self.inboxes[self.number].give_back(buffer);
    }
}

impl Inbox {
    fn give_back(&self, buffer: Box<[u8]>) {
        let kept = self.free.push(buffer);
        debug_assert!(kept.is_ok(), "as many places as buffers");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test panics on purpose")]

    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::dataplane::verdict::Source;

    fn two() -> [Peers; 2] {
        let wakers = [Waker::new().unwrap(), Waker::new().unwrap()];
        let mut peers = Peers::of(&wakers, 100).into_iter();
        [peers.next().unwrap(), peers.next().unwrap()]
    }

    const TO_SECOND: HandOver = HandOver { to: 1, source: Source::Tap, settled: true };

    #[test]
    fn frames_arrive_in_order_and_a_full_ring_refuses() {
        let [mut first, second] = two();
        for round in 0..3_usize {
            for number in 0..WAITING {
                let frame = (round * WAITING + number).to_be_bytes();
                assert!(first.hand_over(TO_SECOND, &frame));
            }
            assert!(!first.hand_over(TO_SECOND, b"one too many"));
            assert_eq!(second.open(), BUDGET);
            for number in 0..WAITING {
                let parcel = second.next().unwrap();
                let frame = &parcel.buffer[HEADROOM..HEADROOM + parcel.length];
                assert_eq!(frame, (round * WAITING + number).to_be_bytes());
                assert_eq!(parcel.handed, TO_SECOND);
                second.give_back(parcel.buffer);
            }
            assert!(second.next().is_none() && !second.has_more());
        }
        assert!(!first.hand_over(TO_SECOND, &[0; 101]), "larger than the buffers");
        assert!(first.hand_over(TO_SECOND, &[0; 100]), "and its buffer is not lost");
        assert!(!first.hand_over(HandOver { to: 2, ..TO_SECOND }, b"x"), "there are two");
    }

    /// Waits until it was woken, and takes that; false when that takes over ten seconds.
    fn woken(waker: &Waker) -> bool {
        let mut polled = [PollFd::new(waker.as_fd(), PollFlags::POLLIN)];
        let woken = poll(&mut polled, PollTimeout::from(10_000_u16)).is_ok_and(|ready| ready > 0);
        // EAGAIN: not woken.
        let _ = nix::unistd::read(waker.as_fd(), &mut [0; 8]);
        woken
    }

    #[test]
    fn nothing_that_is_left_goes_unnoticed() {
        let [mut first, second] = two();
        let total = 100_000;
        let given_up = AtomicBool::new(false);
        let mut expected = 0_u32;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut sent = 0_u32;
                while sent < total && !given_up.load(Ordering::Relaxed) {
                    if first.hand_over(TO_SECOND, &sent.to_be_bytes()) {
                        sent += 1;
                    }
                    first.ring();
                }
            });
            // As the engine does: it sleeps until it is woken, ten seconds at most.
            while expected < total && woken(&second.inboxes[1].waker) {
                while second.open() > 0 {
                    while let Some(parcel) = second.next() {
                        let frame = &parcel.buffer[HEADROOM..HEADROOM + parcel.length];
                        expected += u32::from(frame == expected.to_be_bytes());
                        second.give_back(parcel.buffer);
                    }
                }
            }
            given_up.store(true, Ordering::Relaxed);
        });
        assert_eq!(expected, total, "not woken any more, or out of order");
    }
}
