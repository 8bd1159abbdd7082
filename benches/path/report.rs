//! Medians and ratios.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

use crate::measure::Figures;

/// All measurements, by contestant.
#[derive(Default)]
pub struct Report {
    order: Vec<String>,
    figures: BTreeMap<String, Vec<Figures>>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    median_pps: f64,
    lowest_pps: f64,
    highest_pps: f64,
    process_ns_per_packet: f64,
    lost: u64,
    offered: u64,
}

#[derive(Serialize)]
struct Ratio {
    of: String,
    to: String,
    /// By packets a second.
    ratio: f64,
    /// By CPU time of the process for a packet: what other load on the machine disturbs less.
    process_time_ratio: f64,
    expected: Option<f64>,
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The median; of an even number, the mean of the two in the middle.
fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        (sorted[half - 1] + sorted[half]) / 2.0
    } else {
        sorted[half]
    }
}

impl Report {
    pub fn add(&mut self, name: String, figures: Figures) {
        if !self.order.contains(&name) {
            self.order.push(name.clone());
        }
        self.figures.entry(name).or_default().push(figures);
    }

    fn line(&self, name: &str) -> Line {
        let all = &self.figures[name];
        let rates = sorted(all.iter().map(|one| one.packets_per_second));
        Line {
            name: name.into(),
            median_pps: middle(&rates),
            lowest_pps: rates[0],
            highest_pps: rates[rates.len() - 1],
            process_ns_per_packet: middle(&sorted(all.iter().map(|one| one.process_ns_per_packet))),
            lost: all.iter().map(|one| one.lost).sum(),
            offered: all.iter().map(|one| one.offered).sum(),
        }
    }

    /// What the project promises: 1.8 times tokio-uring at its best with a raw socket, 0.9 times the
    /// plain loop that does nothing else. Ratios are taken within a round, since the machine drifts
    /// from round to round; their median is shown.
    fn ratios(&self, lines: &[Line]) -> Vec<Ratio> {
        let best = |prefix: &str| {
            lines
                .iter()
                .filter(|line| line.name.starts_with(prefix))
                .max_by(|a, b| a.median_pps.total_cmp(&b.median_pps))
        };
        let peers = [("plain-packet", 0.9), ("tokio-uring-raw", 1.8), ("tokio-uring-packet", 1.0)];
        let own = lines.iter().filter(|line| {
            (line.name.starts_with("engine") || line.name.starts_with("adit"))
                && line.name.ends_with("packet")
        });
        let promised = own.flat_map(|line| {
            peers.iter().filter_map(|&(prefix, expected)| {
                let peer = best(prefix)?;
                Some(self.ratio(line, peer, Some(expected)))
            })
        });
        // Packets that each begin a connection, beside packets of known flows.
        let new = lines.iter().filter_map(|line| {
            let (engine, _) = line.name.split_once("-new")?;
            let known = lines.iter().find(|known| known.name == format!("{engine}-packet"))?;
            Some(self.ratio(line, known, None))
        });
        promised.chain(new).collect()
    }

    fn ratio(&self, line: &Line, peer: &Line, expected: Option<f64>) -> Ratio {
        let rounds = self.figures[&line.name].iter().zip(&self.figures[&peer.name]);
        let speed = rounds.clone().map(|(a, b)| a.packets_per_second / b.packets_per_second);
        let cost = rounds.map(|(a, b)| b.process_ns_per_packet / a.process_ns_per_packet);
        Ratio {
            of: line.name.clone(),
            to: peer.name.clone(),
            ratio: middle(&sorted(speed)),
            process_time_ratio: middle(&sorted(cost)),
            expected,
        }
    }

    pub fn print(&self, json: bool) -> Result<()> {
        let lines: Vec<Line> = self.order.iter().map(|name| self.line(name)).collect();
        let ratios = self.ratios(&lines);
        if json {
            let all = serde_json::json!({ "contestants": lines, "ratios": ratios });
            println!("{}", serde_json::to_string_pretty(&all)?);
            return Ok(());
        }
        println!(
            "64-byte packets, Mpps          median  lowest highest  process ns/packet    lost"
        );
        for line in &lines {
            println!(
                "{:<28} {:>8.3} {:>7.3} {:>7.3} {:>18.0} {:>6.2} %",
                line.name,
                line.median_pps / 1e6,
                line.lowest_pps / 1e6,
                line.highest_pps / 1e6,
                line.process_ns_per_packet,
                line.lost as f64 * 100.0 / line.offered as f64,
            );
        }
        println!();
        for Ratio { of, to, ratio, process_time_ratio, expected } in &ratios {
            let expectation = expected.map_or(String::new(), |least| format!("expected {least}; "));
            let missed = expected.is_some_and(|least| *ratio < least);
            println!(
                "{of} / {to} = {ratio:.2} ({expectation}by CPU time of the process \
                 {process_time_ratio:.2}){}",
                if missed { "  MISSED" } else { "" }
            );
        }
        Ok(())
    }
}
