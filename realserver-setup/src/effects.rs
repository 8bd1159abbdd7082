//! The only module that looks at the host and changes it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::plan::{DEVICES, MssMethod, Step, TUNNEL6};

/// Where `apply` keeps the kernel parameters' earlier values for `remove`; gone with a reboot,
/// as the values themselves are.
const SAVED: &str = "/run/adit-realserver/sysctl.json";

/// A step that the host refused.
#[derive(Debug, thiserror::Error)]
pub enum EffectError {
    /// A command said no.
    #[error("`{step}`: {reason}")]
    Refused {
        /// The step or look.
        step: String,
        /// The command's own words.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
}

/// Carries out steps in their order; stops at the first that is refused.
///
/// # Errors
/// The step that was refused, and why. All before it stay done; steps may be repeated.
pub fn carry_out(steps: &[Step]) -> Result<(), EffectError> {
    for step in steps {
        match step {
            Step::Module(name) => load(name)?,
            Step::Sysctl { name, value } => {
                save(name)?;
                write_file(&sysctl_path(name), value)?;
            }
            Step::RestoreSysctl(name) => restore(name)?,
            Step::Ip(words) => run(Command::new("ip").args(words.split(' ')), None, step)?,
            Step::IpIfPresent(words) => {
                // Absent is what is wanted; another refusal shows in the step that follows.
                let _ = run(Command::new("ip").args(words.split(' ')), None, step);
            }
            Step::Nft(ruleset) => run(Command::new("nft").args(["-f", "-"]), Some(ruleset), step)?,
            Step::NftDelete(what) => {
                let words = ["delete"].into_iter().chain(what.split(' '));
                let _ = run(Command::new("nft").args(words), None, step);
            }
        }
    }
    Ok(())
}

/// How this host can limit the segment size: nftables where its `inet` family works.
///
/// # Errors
/// When the routes cannot be listed.
pub fn mss_method() -> Result<MssMethod, EffectError> {
    let probe = "table inet adit_probe { chain output { type filter hook output priority mangle; \
                 tcp option maxseg size set 1440; } }";
    let step = Step::Nft(probe.to_owned());
    if run(Command::new("nft").args(["-c", "-f", "-"]), Some(probe), &step).is_ok() {
        return Ok(MssMethod::Nftables);
    }
    Ok(MssMethod::Route { v4: default_route("-4")?, v6: default_route("-6")? })
}

/// The host's only global IPv6 address that is not on a tunnel device.
///
/// # Errors
/// When there is none, or more than one, so that the caller must name it.
pub fn own_address6() -> Result<Ipv6Addr, EffectError> {
    let words = "-6 -j addr show scope global";
    let found: Vec<Ipv6Addr> = addresses(words)?
        .into_iter()
        .filter(|(device, _)| !DEVICES.contains(&device.as_str()))
        .filter_map(|(_, address)| match address {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        })
        .collect();
    match found[..] {
        [only] => Ok(only),
        _ => Err(EffectError::Refused {
            step: format!("ip {words}"),
            reason: format!("{} addresses of this host: name one with --local", found.len()),
        }),
    }
}

/// The local address of [`TUNNEL6`], where there is such a device and it unwraps both versions.
///
/// # Errors
/// When the devices cannot be listed.
pub fn tunnel6() -> Result<Option<Ipv6Addr>, EffectError> {
    let links = list("-j -d link show type ip6tnl")?;
    let ours = links.iter().find(|link| link.get("ifname").is_some_and(|name| name == TUNNEL6));
    let data = ours.and_then(|link| link.pointer("/linkinfo/info_data"));
    // As `ip` shows the mode "any".
    let any = |data: &&serde_json::Value| data.get("proto").is_some_and(|proto| proto == "any");
    let local = data.filter(any).and_then(|data| data.get("local")?.as_str());
    Ok(local.and_then(|local| local.parse().ok()))
}

/// The VIPs that the host serves: what is on the decapsulating devices.
///
/// # Errors
/// When the addresses cannot be listed.
pub fn served() -> Result<Vec<IpAddr>, EffectError> {
    let listed = addresses("-j addr show scope global")?;
    Ok(listed
        .into_iter()
        .filter(|(device, _)| DEVICES.contains(&device.as_str()))
        .map(|(_, address)| address)
        .collect())
}

fn addresses(words: &str) -> Result<Vec<(String, IpAddr)>, EffectError> {
    let mut found = Vec::new();
    for link in list(words)? {
        let device = link.get("ifname").and_then(|name| name.as_str()).unwrap_or_default();
        let addresses = link.get("addr_info").and_then(|list| list.as_array());
        for address in addresses.into_iter().flatten() {
            let local = address.get("local").and_then(|local| local.as_str());
            if let Some(Ok(local)) = local.map(str::parse) {
                found.push((device.to_owned(), local));
            }
        }
    }
    Ok(found)
}

fn default_route(version: &str) -> Result<Option<String>, EffectError> {
    let routes = list(&format!("{version} -j route show default"))?;
    let Some(route) = routes.first() else { return Ok(None) };
    let part = |name: &str| route.get(name).and_then(|value| value.as_str());
    let via = part("gateway").map(|gateway| format!("via {gateway} "));
    Ok(part("dev").map(|dev| format!("{}dev {dev}", via.unwrap_or_default())))
}

fn list(words: &str) -> Result<Vec<serde_json::Value>, EffectError> {
    let refused = |reason: String| EffectError::Refused { step: format!("ip {words}"), reason };
    let output = Command::new("ip")
        .args(words.split(' '))
        .output()
        .map_err(|error| refused(error.to_string()))?;
    if !output.status.success() {
        return Err(refused(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    // `ip -j` prints nothing at all for an empty list of routes.
    if output.stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| refused(error.to_string()))
}

/// A built-in module is as good: `modprobe` knows those too, and where it is missing, a
/// kernel with the device has no need of it.
fn load(name: &str) -> Result<(), EffectError> {
    let device = match name {
        "ipip" => "/sys/class/net/tunl0",
        "sit" => "/sys/class/net/sit0",
        _ => "/sys/class/net/ip6tnl0",
    };
    if Path::new(device).exists() {
        return Ok(());
    }
    run(Command::new("modprobe").arg(name), None, &Step::Module(name.to_owned()))
}

fn run(command: &mut Command, input: Option<&str>, step: &Step) -> Result<(), EffectError> {
    let refused = |reason: String| EffectError::Refused { step: step.to_string(), reason };
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().map_err(|error| refused(error.to_string()))?;
    if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
        pipe.write_all(text.as_bytes()).map_err(|error| refused(error.to_string()))?;
    }
    let output = child.wait_with_output().map_err(|error| refused(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn sysctl_path(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}

fn write_file(path: &str, text: &str) -> Result<(), EffectError> {
    fs::write(path, text).map_err(|source| EffectError::File { path: path.to_owned(), source })
}

fn saved() -> Result<BTreeMap<String, String>, EffectError> {
    let file_error = |source| EffectError::File { path: SAVED.to_owned(), source };
    match fs::read_to_string(SAVED) {
        Ok(text) => serde_json::from_str(&text).map_err(|error| file_error(error.into())),
        // Never applied since the last reboot: nothing to give back.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(file_error(error)),
    }
}

/// Remembers a value at the first `apply`; later ones would remember our own.
fn save(name: &str) -> Result<(), EffectError> {
    let mut values = saved()?;
    if values.contains_key(name) {
        return Ok(());
    }
    let path = sysctl_path(name);
    let value = fs::read_to_string(&path).map_err(|source| EffectError::File { path, source })?;
    values.insert(name.to_owned(), value.trim().to_owned());
    let dir = Path::new(SAVED).parent().expect("a constant with a parent");
    fs::create_dir_all(dir)
        .map_err(|source| EffectError::File { path: dir.display().to_string(), source })?;
    write_file(SAVED, &serde_json::to_string(&values).expect("strings serialise"))
}

fn restore(name: &str) -> Result<(), EffectError> {
    let mut values = saved()?;
    let Some(value) = values.remove(name) else { return Ok(()) };
    write_file(&sysctl_path(name), &value)?;
    write_file(SAVED, &serde_json::to_string(&values).expect("strings serialise"))
}
