//! Weighted rendezvous hashing, the last resort when every probe of a table was passed over.
//!
//! Each server scores −ln(u) / weight, with u uniform in (0, 1) from the key and the server's
//! address; the lowest score wins. The scores are exponential variables with rate = weight, so
//! the shares are exactly proportional, and a change of one weight moves only that server's
//! score (Schindelhauer & Schomaker, SPAA 2005).
//!
//! The logarithm is computed here, from IEEE 754 additions, multiplications and divisions alone,
//! which give the same bits on every machine; the C library's `log` does not.

use std::net::IpAddr;

use crate::dataplane::hash::PlacementKey;

/// The candidate with the lowest score; weight 0 takes no part. On equal scores the lower
/// address wins, so that the order of the candidates is irrelevant.
pub(super) fn choose(
    key: &PlacementKey,
    candidates: impl Iterator<Item = (usize, IpAddr, u32)>,
) -> Option<usize> {
    let mut best: Option<(f64, IpAddr, usize)> = None;
    for (index, address, weight) in candidates {
        if weight == 0 {
            continue;
        }
        let score = negative_ln(key.with_server(address)) / f64::from(weight);
        let wins = best.is_none_or(|(lowest, holder, _)| {
            score < lowest || (score.total_cmp(&lowest).is_eq() && address < holder)
        });
        if wins {
            best = Some((score, address, index));
        }
    }
    best.map(|(_, _, index)| index)
}

/// −ln((the hash's top 52 bits + ½) / 2^52): finite and above zero.
fn negative_ln(hash: u64) -> f64 {
    // An odd number of at most 53 bits: exact in an f64.
    #[allow(clippy::cast_precision_loss)]
    let uniform = ((hash >> 12) * 2 + 1) as f64 * TWO_TO_MINUS_53;
    let bits = uniform.to_bits();
    let mut exponent = i32::try_from(bits >> 52).unwrap_or(0) - 1023;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    // ln(m) = 2 artanh(s), s = (m − 1) / (m + 1), |s| ≤ 0.1716: nine terms leave 10^−16.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut series = 0.0;
    for divisor in [17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = series * square + 1.0 / divisor;
    }
    -(f64::from(exponent) * std::f64::consts::LN_2 + 2.0 * s * series)
}

const TWO_TO_MINUS_53: f64 = 1.0 / 9_007_199_254_740_992.0;

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // test data is cut to size on purpose
mod tests {
    use super::*;
    use crate::dataplane::hash::{FlowTuple, HashKey, mix64};

    #[test]
    fn the_logarithm_agrees_with_the_library() {
        let samples = (0..100_000u64).map(|i| mix64(i * 77 + 1)).chain([0, 1, u64::MAX, 1 << 63]);
        for hash in samples {
            let uniform = ((hash >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
            let expected = -uniform.ln();
            let ours = negative_ln(hash);
            assert!(ours > 0.0 && ours.is_finite(), "{hash:x}: {ours}");
            assert!((ours - expected).abs() <= 1e-14 * expected.max(1.0), "{hash:x}: {ours}");
        }
    }

    #[test]
    fn shares_follow_the_weights_and_order_is_irrelevant() {
        let servers: Vec<(usize, IpAddr, u32)> = [5u32, 0, 1, 3, 1]
            .into_iter()
            .enumerate()
            .map(|(i, weight)| (i, IpAddr::from([10, 0, 0, i as u8]), weight))
            .collect();
        let mut counts = [0u32; 5];
        for port in 0..50_000u16 {
            let key = PlacementKey::of_flow(
                &HashKey::DEFAULT,
                &FlowTuple {
                    client: IpAddr::from([192, 0, 2, 1]),
                    client_port: port,
                    vip: IpAddr::from([198, 51, 100, 1]),
                    vip_port: 5432,
                    protocol: 6,
                },
            );
            let chosen = choose(&key, servers.iter().copied()).unwrap();
            assert_eq!(choose(&key, servers.iter().rev().copied()), Some(chosen));
            counts[chosen] += 1;
        }
        // Standard deviations are at most 112: five of them.
        for (count, expected) in counts.into_iter().zip([25_000, 0, 5_000, 15_000, 5_000]) {
            assert!(count.abs_diff(expected) <= 560, "{counts:?}");
        }
        assert_eq!(counts[1], 0);
    }
}
