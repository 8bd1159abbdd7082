//! Settings of a network interface by ioctl: index, MTU, queue length, MAC, up.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use thiserror::Error;

use super::errno::advice;

/// A setting of an interface that the kernel refused.
#[derive(Debug, Error)]
#[error("interface {name}: {action}: {errno}{}", advice(*errno))]
pub struct InterfaceError {
    /// The interface.
    pub name: String,
    /// What was tried.
    pub action: &'static str,
    /// The kernel's answer.
    pub errno: Errno,
}

/// An interface addressed by name through an ioctl socket.
#[derive(Debug)]
pub(super) struct Interface {
    name: String,
    socket: OwnedFd,
}

/// A zeroed request that names the interface, or `ENAMETOOLONG` (15 bytes at most, `IFNAMSIZ` - 1).
pub(super) fn request_for(name: &str) -> Result<libc::ifreq, Errno> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.bytes().any(|b| b == 0 || b == b'/')
    {
        return Err(Errno::ENAMETOOLONG);
    }
    // SAFETY: ifreq is a C struct of integers, arrays and pointers; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

impl Interface {
    pub(super) fn named(name: &str) -> Result<Self, InterfaceError> {
        let socket =
            socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).map_err(
                |errno| InterfaceError { name: name.into(), action: "open a socket", errno },
            )?;
        Ok(Self { name: name.into(), socket })
    }

    fn call(
        &self,
        action: &'static str,
        code: libc::Ioctl,
        fill: impl FnOnce(&mut libc::ifreq),
    ) -> Result<libc::ifreq, InterfaceError> {
        let error = |errno| InterfaceError { name: self.name.clone(), action, errno };
        let mut request = request_for(&self.name).map_err(error)?;
        fill(&mut request);
        // SAFETY: `request` is a whole, initialised ifreq that outlives the call, and every code
        // used in this file reads and writes nothing but an ifreq.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), code, &mut request) };
        Errno::result(result).map(|_| request).map_err(error)
    }

    pub(super) fn index(&self) -> Result<u32, InterfaceError> {
        let request = self.call("read its index", SIOCGIFINDEX, |_| {})?;
        // SAFETY: SIOCGIFINDEX succeeded, so the kernel wrote this member of the union.
        let index: c_int = unsafe { request.ifr_ifru.ifru_ifindex };
        Ok(index.unsigned_abs())
    }

    /// The MTU in bytes of the network layer.
    pub(super) fn mtu(&self) -> Result<u32, InterfaceError> {
        let request = self.call("read its MTU", SIOCGIFMTU, |_| {})?;
        // SAFETY: SIOCGIFMTU succeeded, so the kernel wrote this member of the union.
        let mtu: c_int = unsafe { request.ifr_ifru.ifru_mtu };
        Ok(mtu.unsigned_abs())
    }

    pub(super) fn set_mtu(&self, mtu: u32) -> Result<(), InterfaceError> {
        let mtu = c_int::try_from(mtu).unwrap_or(c_int::MAX);
        self.call("set its MTU", SIOCSIFMTU, |request| request.ifr_ifru.ifru_mtu = mtu).map(drop)
    }

    pub(super) fn set_queue_length(&self, frames: u32) -> Result<(), InterfaceError> {
        let frames = c_int::try_from(frames).unwrap_or(c_int::MAX);
        // The kernel reads the member called ifr_qlen, which shares its place with ifr_metric.
        self.call("set its queue length", SIOCSIFTXQLEN, |request| {
            request.ifr_ifru.ifru_metric = frames;
        })
        .map(drop)
    }

    pub(super) fn set_mac(&self, mac: [u8; 6]) -> Result<(), InterfaceError> {
        self.call("set its MAC address", SIOCSIFHWADDR, |request| {
            // SAFETY: sockaddr is integers only, so all zeroes is a valid value.
            let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
            address.sa_family = libc::ARPHRD_ETHER;
            for (to, from) in address.sa_data.iter_mut().zip(mac) {
                *to = from as libc::c_char;
            }
            request.ifr_ifru.ifru_hwaddr = address;
        })
        .map(drop)
    }

    pub(super) fn set_up(&self) -> Result<(), InterfaceError> {
        let request = self.call("read its flags", SIOCGIFFLAGS, |_| {})?;
        // SAFETY: SIOCGIFFLAGS succeeded, so the kernel wrote this member of the union.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        self.call("bring it up", SIOCSIFFLAGS, |request| {
            request.ifr_ifru.ifru_flags = flags | IFF_UP;
        })
        .map(drop)
    }
}

/// The index of an interface in the network namespace of the calling thread.
///
/// # Errors
/// `ENODEV` when there is none of that name.
pub fn interface_index(name: &str) -> Result<u32, InterfaceError> {
    Interface::named(name)?.index()
}

/// The MTU of an interface, in bytes of the network layer.
///
/// # Errors
/// `ENODEV` when there is none of that name.
pub fn interface_mtu(name: &str) -> Result<u32, InterfaceError> {
    Interface::named(name)?.mtu()
}

// linux/sockios.h; not all of them are in the libc crate.
const SIOCGIFFLAGS: libc::Ioctl = 0x8913;
const SIOCSIFFLAGS: libc::Ioctl = 0x8914;
const SIOCGIFMTU: libc::Ioctl = 0x8921;
const SIOCSIFMTU: libc::Ioctl = 0x8922;
const SIOCSIFHWADDR: libc::Ioctl = 0x8924;
const SIOCGIFINDEX: libc::Ioctl = 0x8933;
const SIOCSIFTXQLEN: libc::Ioctl = 0x8943;
/// `IFF_UP` is bit 0; the flags field of ifreq is a short.
const IFF_UP: libc::c_short = 1;
