//! Seeing what passes a device, and putting packets on the wire.

use std::fmt;
use std::net::{IpAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto,
    socket,
};

use crate::error::{Context, LabError, Result};
use crate::io::packet::PacketSocket;
use crate::namespace::Namespace;
use crate::packet::IpPacket;
use crate::wait::wait_for;

/// Frames that a sniffer keeps: a test that needs more should filter.
const CAPACITY: usize = 2_000_000;

/// How often a sniffer looks whether it shall end.
const LOOK: Duration = Duration::from_millis(20);

/// A frame that passed.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// Sent by the host that the sniffer is on, rather than received.
    pub outgoing: bool,
    /// The frame from its destination MAC on.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// The IP packet in the frame.
    #[must_use]
    pub fn ip(&self) -> Option<IpPacket> {
        IpPacket::from_ethernet(&self.bytes)
    }

    /// Ethernet type.
    #[must_use]
    pub fn ether_type(&self) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes.get(12..14)?.try_into().ok()?))
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.outgoing { "out" } else { "in" };
        match self.ip() {
            Some(ip) => write!(
                f,
                "{way} {} > {} proto {} ttl {} len {}",
                ip.source,
                ip.destination,
                ip.protocol,
                ip.ttl,
                ip.bytes.len()
            ),
            None => write!(f, "{way} type {:04x?} len {}", self.ether_type(), self.bytes.len()),
        }
    }
}

/// A running sniffer on one device; it keeps the frames that its filter takes.
#[derive(Debug)]
pub struct Sniffer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    place: String,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    frames: Mutex<Vec<Frame>>,
    lost: AtomicBool,
}

impl Sniffer {
    /// Starts to listen; frames that pass after this returns are seen.
    ///
    /// # Errors
    /// When the device does not exist.
    pub fn start(
        host: &Namespace,
        device: &str,
        filter: impl Fn(&Frame) -> bool + Send + 'static,
    ) -> Result<Self> {
        let place = format!("{device} of {}", host.label());
        let open = || {
            let socket = PacketSocket::open(device)?;
            socket.set_timeout(LOOK)?;
            Ok::<_, std::io::Error>(socket)
        };
        let socket = host.enter(open)?.context(|| format!("listen on {place}"))?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || listen(&socket, &theirs, filter));
        Ok(Self { shared, thread: Some(thread), place })
    }

    /// The frames up to now.
    ///
    /// # Panics
    /// When frames were lost, so that a count would be wrong.
    #[must_use]
    pub fn frames(&self) -> Vec<Frame> {
        assert!(!self.shared.lost.load(Ordering::Relaxed), "frames lost on {}", self.place);
        self.shared.frames.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Number of frames up to now.
    ///
    /// # Panics
    /// When frames were lost.
    #[must_use]
    pub fn count(&self) -> usize {
        assert!(!self.shared.lost.load(Ordering::Relaxed), "frames lost on {}", self.place);
        self.shared.frames.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The IP packets up to now.
    #[must_use]
    pub fn packets(&self) -> Vec<IpPacket> {
        self.frames().iter().filter_map(Frame::ip).collect()
    }

    /// Waits for a packet of which `look` makes something, among past and coming ones.
    ///
    /// # Errors
    /// [`LabError::Failed`] with what was seen instead.
    pub fn wait_for<T>(
        &self,
        limit: Duration,
        what: &str,
        mut look: impl FnMut(&IpPacket) -> Option<T>,
    ) -> Result<T> {
        let mut next = 0;
        let found = wait_for(limit, what, || {
            let frames = self.shared.frames.lock().unwrap_or_else(PoisonError::into_inner);
            let found = frames[next..].iter().filter_map(Frame::ip).find_map(|ip| look(&ip));
            next = frames.len();
            found
        });
        found.map_err(|timeout| {
            let frames = self.frames();
            let last: Vec<_> = frames.iter().rev().take(20).rev().collect();
            let detail = format!("{} frames on {}; the last: {last:#?}", frames.len(), self.place);
            LabError::failed(timeout.to_string(), detail)
        })
    }

    /// Forgets the frames up to now.
    pub fn clear(&self) {
        self.shared.frames.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends within one look; its panic would be the filter's, printed already.
            let _ = thread.join();
        }
    }
}

fn listen(socket: &PacketSocket, shared: &Shared, filter: impl Fn(&Frame) -> bool) {
    let mut buffer = vec![0; 65_536];
    while !shared.stop.load(Ordering::Relaxed) {
        match socket.receive(&mut buffer) {
            Ok(Some(received)) => {
                let bytes = buffer[..received.length].to_vec();
                let frame = Frame { outgoing: received.outgoing, bytes };
                if filter(&frame) {
                    let mut frames = shared.frames.lock().unwrap_or_else(PoisonError::into_inner);
                    if frames.len() < CAPACITY {
                        frames.push(frame);
                    } else {
                        shared.lost.store(true, Ordering::Relaxed);
                    }
                }
            }
            // A quiet moment: time to look whether the kernel had to drop some.
            Ok(None) => {
                if socket.lost().map_or(true, |lost| lost > 0) {
                    shared.lost.store(true, Ordering::Relaxed);
                }
            }
            // The device went away or down; it may come back.
            Err(_) => {}
        }
    }
}

/// Sends IP packets with any header through a host's routing.
#[derive(Debug)]
pub struct RawSender {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl RawSender {
    /// A sender on `host`.
    ///
    /// # Errors
    /// Without CAP_NET_RAW.
    pub fn new(host: &Namespace) -> Result<Self> {
        let open =
            |family| socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, Some(SockProtocol::Raw));
        let what = || format!("open raw sockets on {}", host.label());
        let v4 = host.enter(|| open(AddressFamily::Inet))?.context(what)?;
        let v6 = host.enter(|| open(AddressFamily::Inet6))?.context(what)?;
        Ok(Self { v4, v6 })
    }

    /// Sends one packet to where its own header says.
    ///
    /// # Errors
    /// When there is no route, or the packet is larger than the way out takes.
    ///
    /// # Panics
    /// When it is not an IP packet.
    pub fn send(&self, packet: &[u8]) -> Result<()> {
        let ip = IpPacket::from_ip(packet).expect("an IP packet");
        let what = || format!("send a packet to {}", ip.destination);
        match ip.destination {
            IpAddr::V4(to) => {
                let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
                sendto(self.v4.as_raw_fd(), packet, &to, MsgFlags::empty()).context(what)?;
            }
            IpAddr::V6(to) => {
                let to = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0));
                sendto(self.v6.as_raw_fd(), packet, &to, MsgFlags::empty()).context(what)?;
            }
        }
        Ok(())
    }
}
