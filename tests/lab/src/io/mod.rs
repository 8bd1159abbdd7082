//! The lab's system calls without a safe wrapper: packet sockets and tunnel devices.
#![allow(unsafe_code, reason = "socket addresses and ioctls; each block names its invariant")]

pub mod packet;
pub mod tun;
