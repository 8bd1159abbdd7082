//! `adit capture`: copies of inner and outer packets, since direct egress bypasses what tcpdump
//! sees. Off, it costs one load per batch; on, buffers come from a fixed pool and what finds none
//! is counted, never waited for.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use crossbeam_queue::ArrayQueue;

use crate::dataplane::{time::Time, verdict::EgressId};

/// Bytes kept of each packet: a whole frame of an ordinary link with its tunnel header.
const SNAP_LENGTH: usize = 1600;
/// Buffers of the pool: 6.5 MB, some 10 ms at a million packets a second.
const BUFFERS: usize = 4096;

/// Which side of the tunnel a packet was copied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// As it came from the client, an Ethernet frame.
    Inner,
    /// As it leaves for the real server: an Ethernet frame or, kernel-routed, an IP packet.
    Outer,
}

/// One copied packet.
#[derive(Debug)]
pub struct Captured {
    /// Side of the tunnel.
    pub direction: Direction,
    /// Egress path of an outer packet.
    pub egress: Option<EgressId>,
    /// When, since boot.
    pub time: Time,
    /// Length of the packet, of which `bytes` is the beginning.
    pub length: usize,
    /// The bytes; the buffer is returned by [`CaptureControl::recycle`].
    pub bytes: Vec<u8>,
}

struct Shared {
    on: AtomicBool,
    lost: AtomicU64,
    free: ArrayQueue<Vec<u8>>,
    filled: ArrayQueue<Captured>,
}

/// A worker's end. Clones lead to the same place, one for each worker.
#[derive(Clone)]
pub struct CaptureTap {
    shared: Arc<Shared>,
    on: bool,
}

/// Control's end.
#[derive(Clone)]
pub struct CaptureControl {
    shared: Arc<Shared>,
}

/// Both ends, switched off. Buffers are allocated when capturing first starts.
pub fn capture() -> (CaptureControl, CaptureTap) {
    let shared = Arc::new(Shared {
        on: AtomicBool::new(false),
        lost: AtomicU64::new(0),
        free: ArrayQueue::new(BUFFERS),
        filled: ArrayQueue::new(BUFFERS),
    });
    (CaptureControl { shared: Arc::clone(&shared) }, CaptureTap { shared, on: false })
}

impl CaptureTap {
    /// Looks whether to capture, once per batch.
    pub(super) fn look(&mut self) {
        self.on = self.shared.on.load(Ordering::Acquire);
    }

    /// Copies an inner frame.
    #[inline]
    pub(super) fn record(&self, direction: Direction, time: Time, bytes: &[u8]) {
        if self.on {
            self.copy(direction, None, time, bytes);
        }
    }

    /// Copies an outer packet.
    #[inline]
    pub(super) fn record_outer(&self, egress: EgressId, time: Time, bytes: &[u8]) {
        if self.on {
            self.copy(Direction::Outer, Some(egress), time, bytes);
        }
    }

    #[cold]
    fn copy(&self, direction: Direction, egress: Option<EgressId>, time: Time, packet: &[u8]) {
        let Some(mut bytes) = self.shared.free.pop() else {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            return;
        };
        bytes.clear();
        bytes.extend_from_slice(&packet[..packet.len().min(SNAP_LENGTH)]);
        let captured = Captured { direction, egress, time, length: packet.len(), bytes };
        // As many places as buffers: there is room.
        let _ = self.shared.filled.push(captured);
    }
}

impl CaptureControl {
    /// Begins copying. False when somebody else captures already.
    pub fn start(&self) -> bool {
        if self.shared.on.load(Ordering::Acquire) {
            return false;
        }
        while self.next().is_some_and(|captured| self.recycle(captured)) {}
        while self.shared.free.push(Vec::with_capacity(SNAP_LENGTH)).is_ok() {}
        self.shared.lost.store(0, Ordering::Relaxed);
        self.shared.on.store(true, Ordering::Release);
        true
    }

    /// Ends copying. What is filled can still be read.
    pub fn stop(&self) {
        self.shared.on.store(false, Ordering::Release);
    }

    /// The next copied packet.
    pub fn next(&self) -> Option<Captured> {
        self.shared.filled.pop()
    }

    /// Returns a packet's buffer to the pool.
    pub fn recycle(&self, captured: Captured) -> bool {
        self.shared.free.push(captured.bytes).is_ok()
    }

    /// Packets that found no buffer since capturing started.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}
