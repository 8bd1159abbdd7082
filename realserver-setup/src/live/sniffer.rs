//! Sees every packet that passes this host's interfaces (AF_PACKET).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
    recvmsg, setsockopt, socket, sockopt,
};

use super::watch::{Medium, Passing};

/// Bytes of a packet that are looked at: the headers of an ICMP error that quotes a tunnel packet over
/// IPv6 take 200.
const CAPTURED: usize = 256;
/// Kernel memory in bytes for packets that wait to be looked at: some thousand full ones.
const WAITING: usize = 16 << 20;
/// `ETH_P_ARP`
const ARP: u16 = 0x0806;
/// `PACKET_OUTGOING`
const OUTGOING: u8 = 4;

/// A socket that gets a copy of all packets, of all interfaces.
#[derive(Debug)]
pub struct Sniffer {
    socket: OwnedFd,
    missed: u64,
}

impl Sniffer {
    /// Begins to listen.
    ///
    /// # Errors
    /// Without the right to (CAP_NET_RAW).
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (family, kind) = (AddressFamily::Packet, SockType::Datagram);
        let socket = socket(family, kind, flags, SockProtocol::EthAll)?;
        // Beyond the limit of ordinary programs where that is allowed; else as much as there is.
        setsockopt(&socket, sockopt::RcvBufForce, &WAITING)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &WAITING))?;
        setsockopt(&socket, sockopt::RxqOvfl, &1)?;
        Ok(Self { socket, missed: 0 })
    }

    /// Looks at what waits, `most` packets at a time; whether more may wait.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn look(&mut self, most: usize, mut see: impl FnMut(&Passing<'_>)) -> io::Result<bool> {
        let mut bytes = [0; CAPTURED];
        let mut control = nix::cmsg_space!(u32);
        for _ in 0..most {
            let mut pieces = [IoSliceMut::new(&mut bytes)];
            let got = recvmsg::<LinkAddr>(
                self.socket.as_raw_fd(),
                &mut pieces,
                Some(&mut control),
                MsgFlags::empty(),
            );
            let got = match got {
                Ok(got) => got,
                Err(Errno::EAGAIN) => return Ok(false),
                // An interface went down: others are listened to.
                Err(Errno::ENETDOWN | Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for message in got.cmsgs()? {
                if let ControlMessageOwned::RxqOvfl(missed) = message {
                    self.missed = missed.into();
                }
            }
            let (length, from) = (got.bytes.min(CAPTURED), got.address);
            let Some(from) = from else { continue };
            see(&Passing {
                interface: from.ifindex(),
                medium: medium(from.hatype()),
                leaves: from.pkttype() == OUTGOING,
                is_arp: u16::from_be(from.protocol()) == ARP,
                bytes: &bytes[..length],
            });
        }
        Ok(true)
    }

    /// Packets that went by for want of time, since the beginning.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed
    }
}

impl AsFd for Sniffer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What a type of hardware (`ARPHRD_…` in include/uapi/linux/if_arp.h) is.
const fn medium(hardware: u16) -> Medium {
    match hardware {
        // IPIP, IPv6 tunnels, SIT, GRE, GRE over IPv6, and none, as a program's TUN device has.
        768 | 769 | 776 | 778 | 823 | 0xfffe => Medium::Tunnel,
        _ => Medium::Network,
    }
}
