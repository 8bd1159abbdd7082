//! A point-to-point link between two hosts: a TUN device on each side, without Ethernet, as
//! WireGuard or a PPP line would be.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Context, Result};
use crate::io::tun;
use crate::namespace::Namespace;

/// How often the relay looks whether it shall end, in milliseconds.
const LOOK_MS: u16 = 50;

/// A running link; the devices go away with it.
#[derive(Debug)]
pub struct PointToPoint {
    stop: Arc<AtomicBool>,
    relay: Option<JoinHandle<()>>,
}

impl PointToPoint {
    /// Makes both devices and carries packets between them.
    ///
    /// # Errors
    /// When a device of that name exists.
    pub fn create(a: &Namespace, a_device: &str, b: &Namespace, b_device: &str) -> Result<Self> {
        let open = |host: &Namespace, device: &str| {
            host.enter(|| tun::open(device))?
                .context(|| format!("make {device} in {}", host.label()))
        };
        let (left, right) = (open(a, a_device)?, open(b, b_device)?);
        a.ip(&format!("link set {a_device} up"))?;
        b.ip(&format!("link set {b_device} up"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let relay = std::thread::spawn(move || carry(&left, &right, &stopped));
        Ok(Self { stop, relay: Some(relay) })
    }
}

impl Drop for PointToPoint {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(relay) = self.relay.take() {
            // It ends within one look, and has nothing to report.
            let _ = relay.join();
        }
    }
}

fn carry(left: &File, right: &File, stop: &AtomicBool) {
    let mut packet = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let mut polled = [
            PollFd::new(left.as_fd(), PollFlags::POLLIN),
            PollFd::new(right.as_fd(), PollFlags::POLLIN),
        ];
        // An interrupted wait is one more look.
        let _ = poll(&mut polled, PollTimeout::from(LOOK_MS));
        for (mut from, mut to) in [(left, right), (right, left)] {
            while let Ok(length @ 1..) = from.read(&mut packet) {
                // A device that is down loses the packet, as a line would.
                let _ = to.write(&packet[..length]);
            }
        }
    }
}
