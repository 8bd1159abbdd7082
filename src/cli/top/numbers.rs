//! Numbers as people read them at a glance: three digits and a prefix.

/// Steps of a thousand.
const PREFIXES: [&str; 6] = ["", "k", "M", "G", "T", "P"];

/// `0`, `0.5`, `12`, `999`, `1.23k`, `45.6k`, `789k`, `1.00M`: at most 5 characters, up to 10^18.
pub(super) fn short(number: f64) -> String {
    let (mut scaled, mut prefix) = (number.max(0.0), 0);
    // What would be rounded to 1000 is 1.00 of the next.
    while scaled >= 999.5 && prefix + 1 < PREFIXES.len() {
        scaled /= 1000.0;
        prefix += 1;
    }
    let decimals = match (prefix, scaled) {
        (0, s) if s == 0.0 || s >= 9.95 => 0,
        (0, _) => 1,
        (_, s) if s < 9.995 => 2,
        (_, s) if s < 99.95 => 1,
        _ => 0,
    };
    format!("{scaled:.decimals$}{}", PREFIXES[prefix])
}

/// A count, shortened likewise; exact below 10,000.
pub(super) fn count(number: u64) -> String {
    if number < 10_000 { number.to_string() } else { short(number as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_never_wider_than_their_column() {
        for (number, shown) in [
            (0.0, "0"),
            (-1.0, "0"),
            (0.04, "0.0"),
            (0.5, "0.5"),
            (9.94, "9.9"),
            (9.96, "10"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (1234.0, "1.23k"),
            (99_949.0, "99.9k"),
            (99_951.0, "100k"),
            (999_600.0, "1.00M"),
            (12e9, "12.0G"),
            (f64::NAN, "0"),
        ] {
            assert_eq!(short(number), shown, "{number}");
        }
        let mut number = 0.001;
        while number < 9e17 {
            assert!(short(number).len() <= 5, "{number}: {}", short(number));
            number *= 1.01;
        }
        assert_eq!([0, 9999, 10_000].map(count), ["0", "9999", "10.0k"]);
    }
}
