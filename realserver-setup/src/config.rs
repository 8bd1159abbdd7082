//! `/etc/adit/realserver.toml`, and the options that go before it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::Range;
use std::str::FromStr;

use ipnet::IpNet;
use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource};
use serde::Deserialize;
use toml::Spanned;

use crate::desired::{Tunnel, VipDevice, Wishes};

/// Where the file is looked for.
pub const DEFAULT_FILE: &str = "/etc/adit/realserver.toml";

/// UDP port of GUE unless told otherwise; the director's default.
pub const GUE_PORT: u16 = 6080;

/// Path MTU in bytes unless told otherwise: Ethernet's.
pub const PATH_MTU: u16 = 1500;

/// Bits of a prefix of VIPs that are free: 512 addresses, as the director has room for, each on a
/// device here. A typing error such as /8 is refused.
const FREE_BITS: u8 = 9;

/// What a file or the command line says; what it does not say is `None` or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Virtual IPs.
    pub vips: BTreeSet<IpAddr>,
    /// Outer sources of tunnelled packets.
    pub directors: BTreeSet<IpAddr>,
    /// How they send.
    pub tunnels: BTreeSet<Tunnel>,
    /// MTU of the path from the directors, in bytes; 0: no limit for segments.
    pub path_mtu: Option<u16>,
    /// Where VIPs are put.
    pub vip_device: Option<VipDevice>,
    /// Address of this host that directors send to over IPv6.
    pub local: Option<Ipv6Addr>,
    /// UDP port of GUE.
    pub gue_port: Option<u16>,
}

impl Options {
    /// These options, where they say something, else those of `file`.
    #[must_use]
    pub fn over(self, file: Self) -> Self {
        let either =
            |first: BTreeSet<IpAddr>, second| if first.is_empty() { second } else { first };
        Self {
            vips: either(self.vips, file.vips),
            directors: either(self.directors, file.directors),
            tunnels: if self.tunnels.is_empty() { file.tunnels } else { self.tunnels },
            path_mtu: self.path_mtu.or(file.path_mtu),
            vip_device: self.vip_device.or(file.vip_device),
            local: self.local.or(file.local),
            gue_port: self.gue_port.or(file.gue_port),
        }
    }

    /// With the defaults for what is not said.
    #[must_use]
    pub fn wishes(self) -> Wishes {
        Wishes {
            vips: self.vips,
            directors: self.directors,
            tunnels: self.tunnels,
            path_mtu: self.path_mtu.unwrap_or(PATH_MTU),
            vip_device: self.vip_device.unwrap_or_default(),
            local: self.local,
            gue_port: self.gue_port.unwrap_or(GUE_PORT),
        }
    }
}

/// Everything that is wrong with one file. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    file: String,
    text: String,
    problems: Vec<Problem>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Problem {
    span: Range<usize>,
    message: String,
    help: String,
}

impl ConfigErrors {
    /// Draws each problem with the line it is in and what would be right.
    #[must_use]
    pub fn render(&self, coloured: bool) -> String {
        let theme =
            if coloured { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let handler = GraphicalReportHandler::new_themed(theme).with_links(false).with_width(100);
        let mut out = String::new();
        for problem in &self.problems {
            let diagnostic = MietteDiagnostic::new(problem.message.clone())
                .with_label(LabeledSpan::new_with_span(None, problem.span.clone()))
                .with_help(problem.help.clone());
            let report = miette::Report::new(diagnostic)
                .with_source_code(NamedSource::new(&self.file, self.text.clone()));
            // Writing to a String fails only when a Display implementation does; the one-line
            // form still says what is wrong.
            if handler.render_report(&mut out, report.as_ref()).is_err() {
                out.push_str(&self.one_line(problem));
            }
            out.push('\n');
        }
        out
    }

    fn one_line(&self, problem: &Problem) -> String {
        let (line, column) = position(&self.text, problem.span.start);
        format!("{}:{line}:{column}: {} ({})", self.file, problem.message, problem.help)
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.problems.iter().map(|problem| self.one_line(problem)).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

/// Line and column (characters, both from 1) of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[start..].chars().count() + 1)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    vips: Vec<Spanned<String>>,
    #[serde(default)]
    directors: Vec<Spanned<String>>,
    #[serde(default)]
    tunnels: Vec<Spanned<String>>,
    path_mtu: Option<u16>,
    vip_device: Option<Spanned<String>>,
    local: Option<Spanned<String>>,
    gue_port: Option<Spanned<u16>>,
}

/// Reads a file's text; `file` is its name, for errors.
///
/// # Errors
/// Everything that is wrong with it; after an error of the language itself nothing else is looked for.
pub fn parse(file: &str, text: &str) -> Result<Options, ConfigErrors> {
    let errors = |problems| ConfigErrors { file: file.to_owned(), text: text.to_owned(), problems };
    let raw: File = toml::from_str(text).map_err(|error| {
        errors(vec![Problem {
            span: error.span().unwrap_or(0..0),
            message: error.message().to_owned(),
            help: "see docs/realserver.md, or adit-realserver(8)".to_owned(),
        }])
    })?;
    let mut problems = Vec::new();
    let mut options = Options { path_mtu: raw.path_mtu, ..Options::default() };
    options.vips = all(&raw.vips, &mut problems, parse_vips).into_iter().flatten().collect();
    options.directors = all(&raw.directors, &mut problems, parse_address).into_iter().collect();
    options.tunnels = all(&raw.tunnels, &mut problems, parse_tunnel).into_iter().collect();
    options.vip_device = all(raw.vip_device.as_slice(), &mut problems, parse_vip_device).pop();
    options.local = all(raw.local.as_slice(), &mut problems, parse_local).pop();
    options.gue_port = raw.gue_port.as_ref().map(|port| *port.get_ref());
    if let Some(port) = raw.gue_port.filter(|port| *port.get_ref() == 0) {
        problems.push(Problem {
            span: port.span(),
            message: "there is no port 0".to_owned(),
            help: format!("the director's default is {GUE_PORT}"),
        });
    }
    if problems.is_empty() { Ok(options) } else { Err(errors(problems)) }
}

/// What is wrong with a value, and what would be right.
type Wrong = (String, String);

fn all<T>(
    values: &[Spanned<String>],
    problems: &mut Vec<Problem>,
    parse: impl Fn(&str) -> Result<T, Wrong>,
) -> Vec<T> {
    let mut good = Vec::new();
    for value in values {
        match parse(value.get_ref()) {
            Ok(parsed) => good.push(parsed),
            Err((message, help)) => problems.push(Problem { span: value.span(), message, help }),
        }
    }
    good
}

fn one_of<T: Copy>(text: &str, known: &[(&str, T)]) -> Result<T, Wrong> {
    known.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        (format!("`{text}` is not known here"), format!("one of {}", names.join(", ")))
    })
}

fn parse_address(text: &str) -> Result<IpAddr, Wrong> {
    let address = IpAddr::from_str(text).map_err(|_| {
        let help = "such as \"10.0.0.5\" or \"2001:db8::5\"; names are not looked up".to_owned();
        (format!("`{text}` is not an IP address"), help)
    })?;
    usable(address)
}

/// An address that a packet may come from or go to.
fn usable(address: IpAddr) -> Result<IpAddr, Wrong> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || address.to_ipv4_mapped().is_some()
        }
    };
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() || link_local {
        let help = "an address that is routed, of one host".to_owned();
        return Err((format!("{address} cannot be used here"), help));
    }
    Ok(address)
}

/// A VIP, or all addresses of a prefix.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn parse_vips(text: &str) -> Result<Vec<IpAddr>, Wrong> {
    if !text.contains('/') {
        return parse_address(text).map(|address| vec![address]);
    }
    let net = IpNet::from_str(text).map_err(|_| {
        let help = "an address, or a prefix such as \"198.51.100.16/28\"".to_owned();
        (format!("`{text}` is not a prefix"), help)
    })?;
    if net.trunc() != net {
        let help = format!("{} holds it", net.trunc());
        return Err((format!("`{text}` has bits behind its prefix length"), help));
    }
    let bits = net.max_prefix_len() - net.prefix_len();
    if bits > FREE_BITS {
        let help = format!("at most {} addresses: each is put on a device", 1 << FREE_BITS);
        return Err((format!("`{text}` is too many VIPs"), help));
    }
    let mut address = net.network();
    let mut vips = Vec::new();
    for _ in 0..(1u32 << bits) {
        vips.push(usable(address)?);
        address = match address {
            IpAddr::V4(address) => IpAddr::V4(address.to_bits().wrapping_add(1).into()),
            IpAddr::V6(address) => IpAddr::V6(address.to_bits().wrapping_add(1).into()),
        };
    }
    Ok(vips)
}

/// A director's address.
///
/// # Errors
/// As [`parse_vips`].
pub fn parse_director(text: &str) -> Result<IpAddr, Wrong> {
    parse_address(text)
}

/// A tunnel's name.
///
/// # Errors
/// As [`parse_vips`].
pub fn parse_tunnel(text: &str) -> Result<Tunnel, Wrong> {
    one_of(text, &Tunnel::ALL.map(|tunnel| (tunnel.name(), tunnel)))
}

/// Where VIPs are put.
///
/// # Errors
/// As [`parse_vips`].
pub fn parse_vip_device(text: &str) -> Result<VipDevice, Wrong> {
    one_of(text, &[("tunnel", VipDevice::Tunnel), ("lo", VipDevice::Lo)])
}

/// This host's address over IPv6.
///
/// # Errors
/// As [`parse_vips`].
pub fn parse_local(text: &str) -> Result<Ipv6Addr, Wrong> {
    match parse_address(text)? {
        IpAddr::V6(address) => Ok(address),
        IpAddr::V4(_) => {
            let help = "over IPv4 every address of the host unwraps".to_owned();
            Err((format!("{text} is not an IPv6 address"), help))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file() {
        let text = "vips = [\"198.51.100.10\", \"198.51.100.16/30\", \"2001:db8:100::10\"]\n\
                    directors = [\"10.0.0.5\"]\ntunnels = [\"ipip\", \"sit\"]\npath_mtu = 1400\n\
                    vip_device = \"lo\"\nlocal = \"2001:db8::11\"\ngue_port = 6081\n";
        let options = parse("f", text).unwrap();
        assert_eq!(options.vips.len(), 6);
        assert!(options.vips.contains(&"198.51.100.19".parse().unwrap()));
        assert_eq!(options.tunnels, [Tunnel::Ipip, Tunnel::Sit].into());
        assert_eq!((options.path_mtu, options.gue_port), (Some(1400), Some(6081)));
        assert_eq!(options.vip_device, Some(VipDevice::Lo));
        assert_eq!(parse("f", "").unwrap(), Options::default());
    }

    #[test]
    fn the_example_is_one() {
        let text = include_str!("../../packaging/realserver.example.toml");
        let options = parse("example", text).unwrap();
        assert_eq!((options.vips.len(), options.directors.len()), (1, 1));
        // What stands there as a comment is the default, but for the address.
        let lines = text
            .lines()
            .filter(|line| !line.starts_with("# docs") && !line.starts_with("# Example"));
        let all: String =
            lines.map(|line| format!("{}\n", line.trim_start_matches("# "))).collect();
        let all = parse("example", &all).unwrap();
        let local = all.local;
        assert_eq!(
            all.wishes(),
            Options { local, tunnels: [Tunnel::Ipip].into(), ..options }.wishes()
        );
    }

    #[test]
    fn errors_name_the_place() {
        for (text, place, word) in [
            ("vips = [\"198.51.100.10\"]\nvip = 1\n", "f:2:1:", "unknown field `vip`"),
            ("path_mtu = 70000\n", "f:1:12:", "u16"),
            ("vips = [\"198.51.100.300\"]\n", "f:1:9:", "is not an IP address"),
            ("\nvips = [\"198.51.100.17/28\"]\n", "f:2:9:", "198.51.100.16/28 holds it"),
            ("vips = [\"10.0.0.0/8\"]\n", "f:1:9:", "too many VIPs"),
            ("vips = [\"2001:db8::/64\"]\n", "f:1:9:", "too many VIPs"),
            ("vips = [\"127.0.0.1\"]\n", "f:1:9:", "cannot be used"),
            ("vips = [\"::ffff:1.2.3.4\"]\n", "f:1:9:", "cannot be used"),
            ("directors = [\"director1\"]\n", "f:1:14:", "names are not looked up"),
            ("tunnels = [\"ipip\", \"vxlan\"]\n", "f:1:20:", "one of ipip, sit, ip6tnl, gre, gue"),
            ("vip_device = \"eth0\"\n", "f:1:14:", "one of tunnel, lo"),
            ("local = \"10.0.0.1\"\n", "f:1:9:", "not an IPv6 address"),
            ("gue_port = 0\n", "f:1:12:", "port 0"),
            ("vips = \"198.51.100.10\"\n", "f:1:8:", "sequence"),
            ("vips = [\n", "f:", ""),
        ] {
            let said = parse("f", text).unwrap_err().to_string();
            assert!(said.starts_with(place) && said.contains(word), "{text}: {said}");
        }
        let both = parse("f", "vips = [\"x\"]\ndirectors = [\"y\"]\n").unwrap_err();
        assert_eq!(both.to_string().lines().count(), 2, "{both}");
        assert!(both.render(false).contains("vips = [\"x\"]"), "{}", both.render(false));
    }

    #[test]
    fn options_go_before_the_file() {
        let file = parse("f", "vips = [\"198.51.100.10\"]\npath_mtu = 1400\n").unwrap();
        let line =
            Options { vips: ["198.51.100.11".parse().unwrap()].into(), ..Options::default() };
        let both = line.over(file);
        assert_eq!(both.vips, ["198.51.100.11".parse().unwrap()].into());
        assert_eq!(both.path_mtu, Some(1400));
        assert_eq!(both.wishes().gue_port, GUE_PORT);
    }
}
