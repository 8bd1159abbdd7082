//! Raw sockets that tunnelled packets come by, for hosts whose kernel does not unwrap them.
//!
//! Why raw sockets and not a packet socket: the host's firewall has had its say, fragments of outer
//! packets have been put together and extension headers been walked, and the kernel does not tell the
//! sender that nobody here knows the protocol (`raw_local_deliver`, `ipv6_raw_deliver`).
//!
//! A raw socket of IPv4 gives the outer header with the packet; one of IPv6 keeps it to itself and says
//! what was in it beside the packet. Here it is put together again, as far as it is known, so that
//! both look the same.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use thiserror::Error;

use super::egress::{open_socket, set_option};
use super::errno::{advice, errno_of};

/// Bytes of packets that may wait in a socket, 8 MiB: at a million small packets per second 8 ms in
/// which nobody reads.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;

/// `struct io_uring_recvmsg_out`: lengths of name, control and payload, and flags, 32 bits each.
const REPORT: usize = 16;
/// Room for a `sockaddr_in6` (28 bytes), on a multiple of 8.
const NAME: usize = 32;
/// `CMSG_SPACE(sizeof(int))`: the traffic class.
const CONTROL: usize = 24;
const IPV6_HEADER: usize = 40;

/// IP version of outer packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OuterVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A socket that could not be opened.
#[derive(Debug, Error)]
#[error("raw socket for protocol {protocol}: {action}: {errno}{}", advice(*errno))]
pub struct TunnelSocketError {
    /// 4 or 41.
    pub protocol: u8,
    /// What was tried.
    pub action: &'static str,
    /// The kernel's answer.
    pub errno: Errno,
}

/// A raw socket that packets of one protocol over one IP version come by, whoever sent them.
#[derive(Debug)]
pub struct TunnelSocket {
    socket: OwnedFd,
    protocol: u8,
    wanted: Wanted,
}

/// What RECVMSG is asked for beside the packet.
#[derive(Debug)]
struct Wanted(Box<libc::msghdr>);

// SAFETY: only lengths are set; no pointer in it points to anything.
unsafe impl Send for Wanted {}

impl Wanted {
    fn new(outer: OuterVersion) -> Self {
        // SAFETY: msghdr is integers and pointers, so all zeroes is a valid value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        if outer == OuterVersion::V6 {
            message.msg_namelen = 32; // NAME
            message.msg_controllen = CONTROL;
        }
        Self(Box::new(message))
    }

    /// Bytes for the sender's address.
    fn name(&self) -> usize {
        self.0.msg_namelen as usize
    }

    /// Bytes for control messages.
    fn control(&self) -> usize {
        self.0.msg_controllen
    }

    /// Where the payload starts.
    fn payload(&self) -> usize {
        REPORT + self.name() + self.control()
    }
}

impl TunnelSocket {
    /// Most bytes that a packet takes beside those of its own.
    pub(super) const ROOM: usize = REPORT + NAME + CONTROL;

    /// Opens a socket for packets of `protocol` (4 or 41) over `outer`, in the network namespace of the
    /// calling thread.
    ///
    /// # Errors
    /// No privilege, or no IPv6 in this kernel.
    pub fn open(outer: OuterVersion, protocol: u8) -> Result<Self, TunnelSocketError> {
        let error = |action| move |errno| TunnelSocketError { protocol, action, errno };
        let family = match outer {
            OuterVersion::V4 => libc::AF_INET,
            OuterVersion::V6 => libc::AF_INET6,
        };
        let socket = open_socket(family, libc::SOCK_RAW, libc::c_int::from(protocol))
            .map_err(error("open"))?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER)
            .map_err(error("set the receive buffer"))?;
        if outer == OuterVersion::V6 {
            set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)
                .map_err(error("ask for the traffic class"))?;
        }
        Ok(Self { socket, protocol, wanted: Wanted::new(outer) })
    }

    /// Any datagram socket, whose messages are taken as they are.
    pub(super) fn of_datagrams(socket: OwnedFd) -> Self {
        Self { socket, protocol: 0, wanted: Wanted::new(OuterVersion::V4) }
    }

    /// Tells how many packets were lost because the socket was full. Usable after the socket was given
    /// to an engine.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn losses(&self) -> Result<Losses, Errno> {
        let socket = self.socket.try_clone().map_err(|error| errno_of(&error))?;
        Ok(Losses { socket })
    }

    /// For a request to the kernel: lives as long as this socket.
    pub(super) fn wanted(&self) -> *const libc::msghdr {
        &raw const *self.wanted.0
    }

    /// Receives one message without waiting, and lays it out in `room` as the multishot request does.
    /// Returns how many bytes of it were written.
    pub(super) fn receive(&self, room: &mut [u8]) -> Result<usize, Errno> {
        let start = self.wanted.payload();
        let (head, payload) = room.split_at_mut_checked(start).ok_or(Errno::EINVAL)?;
        let (report, rest) = head.split_at_mut(REPORT);
        let (name, control) = rest.split_at_mut(self.wanted.name());
        let mut part =
            libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
        let mut message = *self.wanted.0;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if !name.is_empty() {
            message.msg_name = name.as_mut_ptr().cast();
            message.msg_control = control.as_mut_ptr().cast();
        }
        // SAFETY: name, control and payload are three exclusive parts of `room`, each given with its
        // own length (`msg_namelen` and `msg_controllen` are what `head` was split by), and `part` and
        // `message` outlive the call.
        let result =
            unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let length = usize::try_from(Errno::result(result)?).unwrap_or_default();
        let lengths = [message.msg_namelen as usize, message.msg_controllen, length];
        let lengths = lengths.map(|length| u32::try_from(length).unwrap_or_default());
        let words = [lengths[0], lengths[1], lengths[2], message.msg_flags.cast_unsigned()];
        for (to, word) in report.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        Ok(start + length)
    }

    /// Where the outer packet is in a message of `length` bytes. For IPv6 its header is written first.
    pub(super) fn packet(&self, message: &mut [u8], length: usize) -> Range<usize> {
        let start = self.wanted.payload();
        let end = length.min(message.len()).max(start);
        if self.wanted.name() == 0 {
            return start..end;
        }
        let Some((head, _)) = message.split_at_mut_checked(start) else { return 0..0 };
        let header = ipv6_header(head, self.protocol, end - start);
        head[start - IPV6_HEADER..].copy_from_slice(&header);
        start - IPV6_HEADER..end
    }
}

impl AsFd for TunnelSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for TunnelSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The outer header by what the kernel says beside a packet: traffic class, source. Flow label and hop
/// limit are 0, the destination is `::`.
fn ipv6_header(head: &[u8], protocol: u8, payload: usize) -> [u8; IPV6_HEADER] {
    let report_word = |number: usize| {
        let bytes = head.get(4 * number..).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes) as usize)
    };
    let name = &head[REPORT..][..NAME];
    let control = &head[REPORT + NAME..][..CONTROL];
    let mut header = [0; IPV6_HEADER];
    let class = if report_word(1) > 16 { traffic_class(control) } else { 0 };
    header[0] = 0x60 | class >> 4;
    header[1] = class << 4;
    // What is longer than the field can say was cut off before: slots hold no more.
    header[4..6].copy_from_slice(&u16::try_from(payload).unwrap_or(u16::MAX).to_be_bytes());
    header[6] = protocol;
    // sockaddr_in6: family, port, flow information, then the address.
    if report_word(0) >= 24 {
        header[8..24].copy_from_slice(&name[8..24]);
    }
    header
}

/// The value of a control message IPV6_TCLASS: length (a size_t), level, type, an int.
fn traffic_class(control: &[u8]) -> u8 {
    let word = |at: usize| {
        let bytes = control.get(at..).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(-1, |bytes| i32::from_ne_bytes(*bytes))
    };
    if (word(8), word(12)) == (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) {
        u8::try_from(word(16)).unwrap_or_default()
    } else {
        0
    }
}

/// Counts what a [`TunnelSocket`] has lost.
#[derive(Debug)]
pub struct Losses {
    socket: OwnedFd,
}

impl Losses {
    /// Packets that came while the socket was full, since it was opened.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn count(&self) -> Result<u32, Errno> {
        // linux/sock_diag.h: SK_MEMINFO_VARS is 9, SK_MEMINFO_DROPS the last of them.
        let mut values = [0_u32; 9];
        let mut length = libc::socklen_t::try_from(size_of_val(&values)).unwrap_or_default();
        // SAFETY: the kernel writes at most `length` bytes, which is the array's size, and the new
        // length; both outlive the call.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                values.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        Errno::result(result).map(|_| values[8])
    }
}
