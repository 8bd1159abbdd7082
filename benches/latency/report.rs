//! Medians, high quantiles, and what the director adds to them.

use anyhow::Result;
use serde::Serialize;

/// All round trips.
pub struct Report {
    rate: u32,
    routed: Vec<u64>,
    balanced: Vec<u64>,
    /// Of each pair of blocks: the medians, routed and balanced.
    medians: Vec<(f64, f64)>,
}

#[derive(Serialize)]
struct Way {
    median_us: f64,
    p99_us: f64,
    lowest_us: f64,
}

#[derive(Serialize)]
struct Summary {
    offered_per_second: u32,
    round_trips_each: usize,
    plain_routing: Way,
    adit: Way,
    /// Of the pairs of blocks, the median of what Adit's median is longer by.
    added_median_us: f64,
    added_p99_us: f64,
    /// Of the pairs of blocks, the median of Adit's median by that of plain routing.
    median_ratio: f64,
    p99_ratio: f64,
}

/// The value below which a share of the sorted values is.
fn quantile(sorted: &[u64], share: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let place = ((sorted.len() - 1) as f64 * share).round() as usize;
    sorted[place] as f64 / 1000.0
}

fn sorted(values: &[u64]) -> Vec<u64> {
    let mut values = values.to_vec();
    values.sort_unstable();
    values
}

fn middle(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Report {
    pub fn new(rate: u32) -> Self {
        Self { rate, routed: Vec::new(), balanced: Vec::new(), medians: Vec::new() }
    }

    /// Adds a block by each way, in nanoseconds.
    pub fn add(&mut self, routed: &[u64], balanced: &[u64]) {
        let median = |block| quantile(&sorted(block), 0.5);
        self.medians.push((median(routed), median(balanced)));
        self.routed.extend_from_slice(routed);
        self.balanced.extend_from_slice(balanced);
    }

    fn summary(&self) -> Summary {
        let way = |times: &[u64]| {
            let times = sorted(times);
            let of = |share| quantile(&times, share);
            Way { median_us: of(0.5), p99_us: of(0.99), lowest_us: of(0.0) }
        };
        let (routed, balanced) = (way(&self.routed), way(&self.balanced));
        Summary {
            offered_per_second: self.rate,
            round_trips_each: self.routed.len(),
            added_median_us: middle(self.medians.iter().map(|(routed, adit)| adit - routed)),
            added_p99_us: balanced.p99_us - routed.p99_us,
            median_ratio: middle(self.medians.iter().map(|(routed, adit)| adit / routed)),
            p99_ratio: balanced.p99_us / routed.p99_us,
            plain_routing: routed,
            adit: balanced,
        }
    }

    pub fn print(&self, json: bool) -> Result<()> {
        let summary = self.summary();
        if json {
            println!("{}", serde_json::to_string_pretty(&summary)?);
            return Ok(());
        }
        let Summary { offered_per_second, round_trips_each, .. } = summary;
        println!(
            "round trips at {offered_per_second}/s, {round_trips_each} by each way   \
             median     p99  lowest (µs)"
        );
        for (name, way) in [("plain routing", &summary.plain_routing), ("adit", &summary.adit)] {
            let Way { median_us, p99_us, lowest_us } = way;
            println!("{name:<46} {median_us:>8.1} {p99_us:>7.1} {lowest_us:>7.1}");
        }
        println!("{:<46} {:>8.1} {:>7.1}", "added", summary.added_median_us, summary.added_p99_us);
        println!(
            "{:<46} {:>8.2} {:>7.2}",
            "adit / routing", summary.median_ratio, summary.p99_ratio
        );
        Ok(())
    }
}
