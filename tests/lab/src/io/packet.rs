//! AF_PACKET sockets: whole Ethernet frames in and out of one device.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, bind, recvfrom, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

/// Receive buffer in bytes: a second of 100 MB/s, so that a sniffer that is not scheduled for a
/// while misses nothing.
const RECEIVE_BUFFER: usize = 128 << 20;

/// A packet socket on one device of the calling thread's namespace.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

/// What was received.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Bytes written to the caller's buffer.
    pub length: usize,
    /// Was the frame sent by this host, rather than received?
    pub outgoing: bool,
}

impl PacketSocket {
    /// Opens a socket for all frames of `device`, in both directions.
    ///
    /// # Errors
    /// When the device does not exist, or without CAP_NET_RAW.
    pub fn open(device: &str) -> io::Result<Self> {
        let index = if_nametoindex(device)?;
        // Protocol 0 at first: nothing is received before the socket is bound to its device.
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        bind(fd.as_raw_fd(), &device_address(index, libc::ETH_P_ALL))?;
        Ok(Self { fd })
    }

    /// Opens a socket that sends by `device` and receives nothing.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_to_send(device: &str) -> io::Result<Self> {
        let index = if_nametoindex(device)?;
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        bind(fd.as_raw_fd(), &device_address(index, 0))?;
        Ok(Self { fd })
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// When the device is down or the frame does not fit.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(self.fd.as_raw_fd(), frame, MsgFlags::empty())?;
        Ok(())
    }

    /// Sets how long [`Self::receive`] waits.
    ///
    /// # Errors
    /// Never on an open socket, but the kernel may say otherwise.
    pub fn set_timeout(&self, limit: Duration) -> io::Result<()> {
        let micros = i64::try_from(limit.as_micros()).unwrap_or(i64::MAX);
        setsockopt(
            &self.fd,
            sockopt::ReceiveTimeout,
            &TimeVal::new(micros / 1_000_000, micros % 1_000_000),
        )?;
        Ok(())
    }

    /// Receives one frame, or `None` when none came in time.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        match recvfrom::<LinkAddr>(self.fd.as_raw_fd(), buffer) {
            Ok((length, from)) => {
                let outgoing = from.is_some_and(|from| is_outgoing(&from));
                Ok(Some(Received { length, outgoing }))
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Frames that were lost since the last call because the receive buffer was full.
    ///
    /// # Errors
    /// Never on a packet socket, but the kernel may say otherwise.
    pub fn lost(&self) -> io::Result<u32> {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = libc::socklen_t::try_from(size_of_val(&statistics)).expect("8 bytes");
        // SAFETY: the kernel writes at most `length` bytes, the size of the structure that the
        // pointer leads to; both outlive the call.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        Errno::result(result)?;
        Ok(statistics.tp_drops)
    }
}

/// `sockaddr_ll` of a device, for one protocol (0 is none); see packet(7).
fn device_address(index: u32, protocol: libc::c_int) -> LinkAddr {
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).expect("17"),
        sll_protocol: u16::try_from(protocol).expect("an ethertype").to_be(),
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).expect("20 bytes");
    // SAFETY: the pointer leads to an initialised `sockaddr_ll` of that length, whose family
    // is AF_PACKET; the bytes are copied before this function returns.
    unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) }
        .expect("the family is AF_PACKET")
}

fn is_outgoing(from: &LinkAddr) -> bool {
    let raw: &libc::sockaddr_ll = from.as_ref();
    raw.sll_pkttype == libc::PACKET_OUTGOING
}
