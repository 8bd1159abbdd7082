//! IPsec between two hosts: ESP in transport mode for tunnelled packets, by the kernel's xfrm.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::error::Result;
use crate::host::Host;
use crate::packet::{IPIP, IPV6_IN_IP};

/// AES-128 (RFC 3602); a lab has no secrets. Not GCM, which fewer kernels have built in.
const KEY: &str = "0x000102030405060708090a0b0c0d0e0f";
/// HMAC-SHA-256-128 (RFC 4868).
const AUTH_KEY: &str = "0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// What a policy covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cover {
    /// Packets of protocols 4 and 41 only.
    ///
    /// The kernel looks such a policy up by the protocol of the *socket*, and for one that writes
    /// its own headers (IP_HDRINCL) that is 255 whatever the header says (`raw_sendmsg` in
    /// net/ipv4/raw.c): a director that sends by such a socket goes around the policy.
    Tunnel,
    /// Everything between the two addresses.
    Everything,
}

/// Has the kernels of two hosts encrypt what they send to each other, in both directions.
///
/// # Errors
/// When a kernel has no xfrm.
pub fn protect(cover: Cover, a: (&dyn Host, IpAddr), b: (&dyn Host, IpAddr)) -> Result<()> {
    let selectors = match cover {
        Cover::Tunnel => vec![format!("proto {IPIP}"), format!("proto {IPV6_IN_IP}")],
        Cover::Everything => vec![String::new()],
    };
    for ((host, own), (_, peer)) in [(a, b), (b, a)] {
        let mut lines = String::new();
        for (source, destination, direction) in [(own, peer, "out"), (peer, own, "in")] {
            // Told from the order of the addresses, so that both ends agree.
            let spi = if source < destination { 0x1001 } else { 0x1002 };
            let _ = writeln!(
                lines,
                "xfrm state add src {source} dst {destination} proto esp spi {spi} mode transport \
                 auth-trunc hmac(sha256) {AUTH_KEY} 128 enc cbc(aes) {KEY}"
            );
            for selector in &selectors {
                let _ = writeln!(
                    lines,
                    "xfrm policy add src {source} dst {destination} {selector} dir {direction} \
                     tmpl src {source} dst {destination} proto esp mode transport"
                );
            }
        }
        // A kernel with the modules loads them; one that has them built in does not need to.
        host.sh(&format!(
            "modprobe -aq xfrm_user esp4 esp6 authenc cbc aes_generic hmac sha256_generic || true\n\
             ip -batch - <<'END'\n{lines}END"
        ))?;
    }
    Ok(())
}
