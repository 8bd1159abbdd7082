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
    ratio: f64,
    expected: f64,
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
        let mut rates: Vec<f64> = all.iter().map(|one| one.packets_per_second).collect();
        rates.sort_by(f64::total_cmp);
        let mut costs: Vec<f64> = all.iter().map(|one| one.process_ns_per_packet).collect();
        costs.sort_by(f64::total_cmp);
        Line {
            name: name.into(),
            median_pps: rates[rates.len() / 2],
            lowest_pps: rates[0],
            highest_pps: rates[rates.len() - 1],
            process_ns_per_packet: costs[costs.len() / 2],
            lost: all.iter().map(|one| one.lost).sum(),
            offered: all.iter().map(|one| one.offered).sum(),
        }
    }

    /// What the project promises: 1.8 times tokio-uring at its best with a raw socket, 0.9 times the
    /// plain loop that does nothing else.
    fn ratios(lines: &[Line]) -> Vec<Ratio> {
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
        own.flat_map(|line| {
            peers.iter().filter_map(|&(prefix, expected)| {
                let peer = best(prefix)?;
                let ratio = line.median_pps / peer.median_pps;
                Some(Ratio { of: line.name.clone(), to: peer.name.clone(), ratio, expected })
            })
        })
        .collect()
    }

    pub fn print(&self, json: bool) -> Result<()> {
        let lines: Vec<Line> = self.order.iter().map(|name| self.line(name)).collect();
        let ratios = Self::ratios(&lines);
        if json {
            let all = serde_json::json!({ "contestants": lines, "ratios": ratios });
            println!("{}", serde_json::to_string_pretty(&all)?);
            return Ok(());
        }
        println!(
            "64-byte UDP packets, Mpps      median  lowest highest  process ns/packet    lost"
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
        for Ratio { of, to, ratio, expected } in &ratios {
            let verdict = if ratio >= expected { "" } else { "  MISSED" };
            println!("{of} / {to} = {ratio:.2} (expected at least {expected}){verdict}");
        }
        Ok(())
    }
}
