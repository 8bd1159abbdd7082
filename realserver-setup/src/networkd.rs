//! The same real server as files that the system itself carries out at boot: modules-load.d, sysctl.d,
//! systemd-networkd and nftables, in this order. Pure.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use crate::desired::Desired;
use crate::kernel::{Device, ParameterName, Version};

/// A file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// Path below /etc.
    pub path: String,
    /// Its text.
    pub text: String,
}

/// Why files cannot say it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkdError {
    /// The address would be found by looking at the host.
    #[error("name the address that directors send to over IPv6: local = \"…\", or --local")]
    NoLocal,
    /// systemd-networkd has no words for it.
    #[error("systemd-networkd cannot take off GUE over IPv6: use adit-realserver.service")]
    GueOverIpv6,
}

const HEAD: &str = "# Written by adit-realserver networkd.\n";

/// The files, in the order in which they take effect at boot.
///
/// # Errors
/// See [`NetworkdError`].
pub fn files(desired: &Desired) -> Result<Vec<ConfigFile>, NetworkdError> {
    let mut files = Vec::new();
    let mut add = |path: &str, text: String| {
        files.push(ConfigFile { path: path.to_owned(), text: format!("{HEAD}{text}") });
    };
    let modules: Vec<_> = desired.modules().iter().map(|module| module.name()).collect();
    add("modules-load.d/adit-realserver.conf", format!("{}\n", modules.join("\n")));
    add("sysctl.d/90-adit-realserver.conf", sysctls(desired));
    for device in desired.devices() {
        let name = device.name();
        if let Some(kind) = device.made() {
            let local = desired.local().ok_or(NetworkdError::NoLocal)?;
            add(&format!("systemd/network/40-{name}.netdev"), netdev(device, kind, local));
        }
        let vips: Vec<_> =
            desired.vips().iter().copied().filter(|vip| desired.holder(*vip) == name).collect();
        add(&format!("systemd/network/40-{name}.network"), network(name, &vips));
    }
    let on_lo: Vec<_> =
        desired.vips().iter().copied().filter(|vip| desired.holder(*vip) == "lo").collect();
    if !on_lo.is_empty() {
        add("systemd/network/40-adit-lo.network", network("lo", &on_lo));
    }
    for port in desired.ports() {
        if port.version == Version::V6 {
            return Err(NetworkdError::GueOverIpv6);
        }
        add(
            "systemd/network/40-adit-gue.netdev",
            format!(
                "[NetDev]\nName=adit-gue\nKind=fou\n\n[FooOverUDP]\n\
                 Encapsulation=GenericUDPEncapsulation\nPort={}\n",
                port.port
            ),
        );
    }
    add(
        "adit-realserver.nft",
        format!(
            "# Into /etc/nftables.conf, at its end: include \"/etc/adit-realserver.nft\"\n{}",
            desired.rules().definition()
        ),
    );
    Ok(files)
}

fn sysctls(desired: &Desired) -> String {
    let mut text = String::new();
    if !desired.versions().contains(&Version::V4) {
        return "# No IPv4 VIP: nothing to set.\n".to_owned();
    }
    let mut line = |parameter: crate::kernel::Parameter, value: i32| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{parameter} = {value}");
    };
    line(ParameterName::ArpIgnore.all(), 1);
    line(ParameterName::ArpAnnounce.all(), 2);
    // The larger of all and the interface is in force: what `all` said before, the other
    // interfaces have to say themselves.
    line(ParameterName::RpFilter.all(), 0);
    for device in desired.devices() {
        line(ParameterName::RpFilter.of(device.name()), 0);
    }
    text
}

fn netdev(device: Device, kind: &str, local: Ipv6Addr) -> String {
    let mode = if device == Device::Ip6 { "Mode=any\n" } else { "" };
    format!(
        "[NetDev]\nName={}\nKind={kind}\n\n[Tunnel]\n{mode}Local={local}\nRemote=any\n\
         EncapsulationLimit=none\nIndependent=yes\n",
        device.name()
    )
}

fn network(name: &str, vips: &[IpAddr]) -> String {
    let mut text = format!("[Match]\nName={name}\n\n[Link]\nRequiredForOnline=no\n\n[Network]\n");
    if name == "lo" {
        // Loopback's own addresses are the kernel's, and stay.
        text.push_str("KeepConfiguration=yes\n");
    } else {
        text.push_str("LinkLocalAddressing=no\nConfigureWithoutCarrier=yes\n");
    }
    for vip in vips {
        let _ = writeln!(text, "\n[Address]\nAddress={vip}/{}", Version::of(*vip).host_bits());
        if vip.is_ipv6() {
            text.push_str("DuplicateAddressDetection=none\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::tests::wishes;
    use crate::desired::{Tunnel, Wishes};

    fn text(wishes: Wishes) -> Result<String, NetworkdError> {
        let files = files(&Desired::new(wishes).unwrap())?;
        Ok(files.iter().map(|file| format!("== {}\n{}", file.path, file.text)).collect())
    }

    #[test]
    fn every_part_of_a_real_server_has_its_file() {
        let vips = ["198.51.100.10", "2001:db8:100::10"];
        let text = text(Wishes {
            local: Some("2001:db8::11".parse().unwrap()),
            ..wishes(&vips, &["10.0.0.5", "2001:db8::5"], &[])
        })
        .unwrap();
        for part in [
            "== modules-load.d/adit-realserver.conf\n# Written by adit-realserver networkd.\nipip\nsit\nip6_tunnel\n",
            "net.ipv4.conf.all.arp_ignore = 1\nnet.ipv4.conf.all.arp_announce = 2\n",
            "net.ipv4.conf.tunl0.rp_filter = 0\n",
            "Name=adit-ip6\nKind=ip6tnl\n\n[Tunnel]\nMode=any\nLocal=2001:db8::11\nRemote=any\n",
            "[Match]\nName=tunl0\n",
            "Address=198.51.100.10/32\n",
            "Address=2001:db8:100::10/128\nDuplicateAddressDetection=none\n",
            "meta l4proto 4 ip saddr @directors4 accept",
            "size set 1420",
        ] {
            assert!(text.contains(part), "{part}\n--- not in ---\n{text}");
        }
        assert_eq!(text.matches("Address=198.51.100.10").count(), 1, "{text}");
    }

    #[test]
    fn what_files_cannot_say_is_refused() {
        let over6 = |tunnels: &[Tunnel]| wishes(&["198.51.100.10"], &["2001:db8::5"], tunnels);
        assert_eq!(text(over6(&[])), Err(NetworkdError::NoLocal));
        let local = Some("2001:db8::11".parse().unwrap());
        let gue = Wishes { local, ..over6(&[Tunnel::Gue]) };
        assert_eq!(text(gue), Err(NetworkdError::GueOverIpv6));
    }
}
