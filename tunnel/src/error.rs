//! Errors about headers: which layer, what it needed, what was there.

use core::fmt;

/// The header an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layer {
    /// The outer header, before its version is known.
    Outer,
    /// The outer IPv4 header, or the packet it declares.
    OuterIpv4,
    /// The outer IPv6 header, or the packet it declares.
    OuterIpv6,
    /// An extension header between the outer IPv6 header and the inner packet.
    OuterIpv6Extension,
    /// The GRE header.
    Gre,
    /// The outer UDP header, or the datagram it declares.
    OuterUdp,
    /// The GUE header.
    Gue,
    /// The inner header, before its version is known.
    Inner,
    /// The inner IPv4 header, or the packet it declares.
    InnerIpv4,
    /// The inner IPv6 header, or the packet it declares.
    InnerIpv6,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Outer => "outer header",
            Self::OuterIpv4 => "outer IPv4 packet",
            Self::OuterIpv6 => "outer IPv6 packet",
            Self::OuterIpv6Extension => "outer IPv6 extension header",
            Self::Gre => "GRE header",
            Self::OuterUdp => "outer UDP datagram",
            Self::Gue => "GUE header",
            Self::Inner => "inner header",
            Self::InnerIpv4 => "inner IPv4 packet",
            Self::InnerIpv6 => "inner IPv6 packet",
        })
    }
}

/// A layer that is longer than what is there for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LenError {
    /// The layer that is short.
    pub layer: Layer,
    /// Bytes the layer needs, counted from its own first byte.
    pub needed: usize,
    /// Bytes there are from its first byte on, in the slice or in the enclosing packet.
    pub actual: usize,
}

impl fmt::Display for LenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} needs {} bytes, has {}", self.layer, self.needed, self.actual)
    }
}

impl core::error::Error for LenError {}

/// What can be wrong with the form of one IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeaderError {
    /// The header, or the packet it declares, does not fit into what is there.
    Length(LenError),
    /// The version is neither 4 nor 6, or not the one the layer around it announces.
    Version {
        /// Where.
        layer: Layer,
        /// The version nibble found.
        found: u8,
    },
    /// The IPv4 header length is below 20 bytes.
    HeaderLength {
        /// Where.
        layer: Layer,
        /// The header length found, in bytes.
        found: usize,
    },
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(error) => error.fmt(f),
            Self::Version { layer, found } => write!(f, "{layer} has version {found}"),
            Self::HeaderLength { layer, found } => {
                write!(f, "{layer} declares a header of {found} bytes, the least is 20")
            }
        }
    }
}

impl core::error::Error for HeaderError {}

impl From<LenError> for HeaderError {
    fn from(error: LenError) -> Self {
        Self::Length(error)
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn errors_say_layer_needed_and_actual() {
        let layer = Layer::InnerIpv4;
        let cases: [(HeaderError, &str); 3] = [
            (
                LenError { layer, needed: 20, actual: 19 }.into(),
                "inner IPv4 packet needs 20 bytes, has 19",
            ),
            (HeaderError::Version { layer: Layer::Outer, found: 5 }, "outer header has version 5"),
            (
                HeaderError::HeaderLength { layer, found: 16 },
                "inner IPv4 packet declares a header of 16 bytes, the least is 20",
            ),
        ];
        for (error, expected) in cases {
            assert_eq!(error.to_string(), expected);
        }
    }
}
