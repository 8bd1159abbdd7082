//! Ways out: AF_PACKET sockets on one interface, raw IP sockets through the kernel's routing, and the
//! TAP itself.

use std::mem::size_of_val;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use io_uring::{opcode, squeue, types};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrStorage, bind, connect, send};
use thiserror::Error;

use super::errno::advice;
use super::packet_socket::receive_nothing;
use super::ring::Ring;

/// Names a way out. 0 is the TAP; the others are given out by control and stay the same as long as
/// the path exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EgressId(pub u16);

impl EgressId {
    /// Back to the TAP: answers to the kernel's side (ARP, ICMP, RST). A whole Ethernet frame.
    pub const TAP: Self = Self(0);
    /// Into the TUN of an engine [between](super::Engine::between) sockets and one: a packet behind an
    /// [`OffloadHeader`](super::OffloadHeader).
    pub const TUN: Self = Self(0);
}

/// Ways out at most, the TAP included: 1000 real servers by 4 tunnels or sources each. A worker's
/// ring keeps this many places for files; RLIMIT_NOFILE must allow it.
pub const MAX_EGRESS: u16 = 4096;

/// Bytes of frames that may wait in a direct socket for the device, 4 MiB: 3 ms at 10 Gb/s. A device
/// that is slower than that drops, and the drop is counted.
const DIRECT_SEND_BUFFER: libc::c_int = 4 << 20;

/// Where a path leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EgressTarget {
    /// Out of one Ethernet interface, past routing, netfilter and queueing. Frames start with their
    /// Ethernet header.
    Direct {
        /// Interface index.
        interface: u32,
    },
    /// Through the kernel's routing. Frames start with the outer IP header.
    ///
    /// Not where an IPsec policy may apply: for packets with a header of our own the kernel looks
    /// policies up by protocol 255 (`raw_sendmsg`), and those for the tunnel's protocol are missed.
    Kernel {
        /// The outer destination.
        destination: IpAddr,
        /// The address to route as; `None` leaves the choice to the route.
        source: Option<IpAddr>,
    },
    /// Through the kernel's routing and IPsec policies, which see the tunnel's protocol. Frames are
    /// inner packets; the kernel writes the outer header, and fragments where that is needed. DF,
    /// DSCP and ECN of the inner packet are not copied to it: they are the socket's, the same for
    /// all packets.
    Protected {
        /// The outer destination.
        destination: IpAddr,
        /// The outer source.
        source: IpAddr,
        /// 4 or 41, what the outer header announces.
        protocol: u8,
        /// TTL or hop limit of the outer header.
        hop_limit: u8,
    },
}

/// A path that could not be opened.
#[derive(Debug, Error)]
#[error("{target}: {action}: {errno}{}", advice(*errno))]
pub struct EgressError {
    /// Which path.
    pub target: EgressTarget,
    /// What was tried.
    pub action: &'static str,
    /// The kernel's answer.
    pub errno: Errno,
}

impl std::fmt::Display for EgressTarget {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Direct { interface } => write!(to, "direct egress on interface {interface}"),
            Self::Kernel { destination, source: None } => {
                write!(to, "egress to {destination} through the kernel")
            }
            Self::Kernel { destination, source: Some(source) } => {
                write!(to, "egress from {source} to {destination} through the kernel")
            }
            Self::Protected { destination, source, protocol, .. } => write!(
                to,
                "egress of protocol {protocol} from {source} to {destination} through IPsec policies"
            ),
        }
    }
}

/// An open path, made on any thread, to be installed by the worker.
#[derive(Debug)]
pub struct OpenEgress {
    socket: OwnedFd,
}

impl OpenEgress {
    /// Opens the socket of a path, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// No privilege, no such interface, no route yet (try again later), source not of this host.
    pub fn open(target: &EgressTarget) -> Result<Self, EgressError> {
        let error = |(action, errno)| EgressError { target: *target, action, errno };
        let socket = match *target {
            EgressTarget::Direct { interface } => open_direct(interface),
            EgressTarget::Kernel { destination, source } => open_kernel(destination, source),
            EgressTarget::Protected { destination, source, protocol, hop_limit } => {
                open_protected(destination, source, protocol, hop_limit)
            }
        };
        Ok(Self { socket: socket.map_err(error)? })
    }

    /// Sends one frame or packet now, for what is rare and not the worker's: announcements.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        send(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT).map(drop)
    }
}

impl AsRawFd for OpenEgress {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl From<OpenEgress> for OwnedFd {
    fn from(path: OpenEgress) -> Self {
        path.socket
    }
}

type Step<T> = Result<T, (&'static str, Errno)>;

/// Attaches what was tried to an errno.
trait Trying<T> {
    fn trying(self, action: &'static str) -> Step<T>;
}

impl<T> Trying<T> for Result<T, Errno> {
    fn trying(self, action: &'static str) -> Step<T> {
        self.map_err(|errno| (action, errno))
    }
}

fn open_direct(interface: u32) -> Step<OwnedFd> {
    // Protocol 0: the socket sends and never receives, so it costs the receive path nothing.
    let socket = open_socket(libc::AF_PACKET, libc::SOCK_RAW, 0).trying("open a packet socket")?;
    bind_packet(&socket, interface, 0).trying("bind to the interface")?;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)
        .trying("bypass the queueing discipline")?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, DIRECT_SEND_BUFFER)
        .trying("set the send buffer (needs CAP_NET_ADMIN)")?;
    Ok(socket)
}

fn open_kernel(destination: IpAddr, source: Option<IpAddr>) -> Step<OwnedFd> {
    // PMTUDISC_PROBE: the kernel neither fragments nor believes its own (forgeable) path MTU cache;
    // the device's MTU alone limits, as EMSGSIZE. Path MTUs per real server are the data plane's.
    let (family, level, header, discover, probe) = match destination {
        IpAddr::V4(_) => (
            libc::AF_INET,
            libc::IPPROTO_IP,
            libc::IP_HDRINCL,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_PROBE,
        ),
        IpAddr::V6(_) => (
            libc::AF_INET6,
            libc::IPPROTO_IPV6,
            libc::IPV6_HDRINCL,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_PROBE,
        ),
    };
    let socket =
        open_socket(family, libc::SOCK_RAW, libc::IPPROTO_RAW).trying("open a raw socket")?;
    set_option(&socket, level, header, 1).trying("send own headers")?;
    set_option(&socket, level, discover, probe).trying("set path MTU discovery")?;
    fix_ends(&socket, source, destination)?;
    Ok(socket)
}

fn fix_ends(socket: &OwnedFd, source: Option<IpAddr>, destination: IpAddr) -> Step<()> {
    if let Some(source) = source {
        let address = SockaddrStorage::from(SocketAddr::new(source, 0));
        bind(socket.as_raw_fd(), &address).trying("bind to the source")?;
    }
    let address = SockaddrStorage::from(SocketAddr::new(destination, 0));
    connect(socket.as_raw_fd(), &address).trying("connect")
}

fn open_protected(
    destination: IpAddr,
    source: IpAddr,
    protocol: u8,
    hop_limit: u8,
) -> Step<OwnedFd> {
    // PMTUDISC_DONT: the kernel knows what encryption adds and fragments by it.
    let (family, level, ttl, discover, dont) = match destination {
        IpAddr::V4(_) => (
            libc::AF_INET,
            libc::IPPROTO_IP,
            libc::IP_TTL,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DONT,
        ),
        IpAddr::V6(_) => (
            libc::AF_INET6,
            libc::IPPROTO_IPV6,
            libc::IPV6_UNICAST_HOPS,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DONT,
        ),
    };
    let socket = open_socket(family, libc::SOCK_RAW, libc::c_int::from(protocol))
        .trying("open a raw socket")?;
    // A raw socket of a protocol would also receive every packet of it.
    receive_nothing(&socket).trying("attach a filter")?;
    set_option(&socket, level, discover, dont).trying("set path MTU discovery")?;
    set_option(&socket, level, ttl, libc::c_int::from(hop_limit)).trying("set the hop limit")?;
    fix_ends(&socket, Some(source), destination)?;
    Ok(socket)
}

/// A non-blocking, close-on-exec socket. `protocol` as socket(2) takes it (network order for
/// AF_PACKET).
pub(super) fn open_socket(
    family: libc::c_int,
    kind: libc::c_int,
    protocol: libc::c_int,
) -> Result<OwnedFd, Errno> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes integers only.
    let fd = Errno::result(unsafe { libc::socket(family, kind | flags, protocol) })?;
    // SAFETY: a descriptor that was just opened and that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Binds an AF_PACKET socket to an interface (0: all) and an ethertype (0: receive nothing).
pub(super) fn bind_packet(socket: &OwnedFd, interface: u32, ethertype: u16) -> Result<(), Errno> {
    // SAFETY: sockaddr_ll is integers only, so all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = AF_PACKET;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = i32::try_from(interface).map_err(|_| Errno::ENODEV)?;
    let length = option_length(&address);
    // SAFETY: the address is initialised, outlives the call, and its length is its size.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    Errno::result(result).map(drop)
}

#[expect(clippy::cast_possible_truncation, reason = "the value is 17")]
const AF_PACKET: libc::sa_family_t = libc::AF_PACKET as libc::sa_family_t;

#[expect(clippy::cast_possible_truncation, reason = "addresses and options are a few bytes long")]
fn option_length<T>(value: &T) -> libc::socklen_t {
    size_of_val(value) as libc::socklen_t
}

/// Sets a socket option whose value is a C struct or integer without padding or pointers.
pub(super) fn set_option<T: Copy>(
    socket: &OwnedFd,
    level: libc::c_int,
    name: libc::c_int,
    value: T,
) -> Result<(), Errno> {
    let length = option_length(&value);
    // SAFETY: the value is on this stack frame for the whole call, and its length is its size.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length)
    };
    Errno::result(result).map(drop)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Empty,
    /// TAP or TUN.
    Device,
    Socket,
}

/// A worker's paths. Fixed file `i` of the ring is path `i`; the ring holds the only reference to
/// the sockets, so they need no descriptors of the process.
#[derive(Debug)]
pub(super) struct EgressTable {
    places: Box<[Place]>,
}

impl EgressTable {
    /// Registers the device, where there is one, as path 0, and room for the others.
    pub(super) fn register(ring: &Ring, device: Option<RawFd>) -> Result<Self, Errno> {
        let limit = usize::from(MAX_EGRESS);
        let mut files = vec![-1; limit];
        files[0] = device.unwrap_or(-1);
        ring.register_files(&files)?;
        let mut places = vec![Place::Empty; limit];
        if device.is_some() {
            places[0] = Place::Device;
        }
        Ok(Self { places: places.into() })
    }

    /// The request that sends `length` bytes at `address` by path `id`, or `None` when it is not
    /// installed.
    pub(super) fn request(
        &self,
        id: EgressId,
        address: *const u8,
        length: u32,
    ) -> Option<squeue::Entry> {
        let file = types::Fixed(u32::from(id.0));
        match self.places.get(usize::from(id.0))? {
            Place::Empty => None,
            Place::Device => Some(opcode::Write::new(file, address, length).build()),
            Place::Socket => Some(
                opcode::Send::new(file, address, length)
                    .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
                    .build(),
            ),
        }
    }
}

/// The worker's paths, to be changed between two batches.
pub struct EgressControl<'a> {
    pub(super) table: &'a mut EgressTable,
    pub(super) ring: &'a Ring,
}

impl EgressControl<'_> {
    /// Installs (or replaces) a path. Sends that are in flight complete on the old one.
    ///
    /// # Errors
    /// `EINVAL` for the TAP's id and for one that is not below [`MAX_EGRESS`].
    pub fn install(&mut self, id: EgressId, path: OpenEgress) -> Result<(), Errno> {
        let place = self.place(id)?;
        self.ring.set_file(u32::from(id.0), path.as_raw_fd())?;
        self.table.places[place] = Place::Socket;
        Ok(())
    }

    /// Removes a path: later sends by it complete with `ENXIO`. Removing what is not there is fine.
    ///
    /// # Errors
    /// As [`EgressControl::install`].
    pub fn remove(&mut self, id: EgressId) -> Result<(), Errno> {
        let place = self.place(id)?;
        if self.table.places[place] == Place::Socket {
            self.table.places[place] = Place::Empty;
            self.ring.set_file(u32::from(id.0), -1)?;
        }
        Ok(())
    }

    fn place(&self, id: EgressId) -> Result<usize, Errno> {
        let place = usize::from(id.0);
        if id == EgressId::TAP || place >= self.table.places.len() {
            return Err(Errno::EINVAL);
        }
        Ok(place)
    }
}
