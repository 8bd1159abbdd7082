//! The director beside the kernel's: one corpus of packets goes through both, and what comes out is
//! compared field by field. Every difference is in the table, with its reason.

#![allow(clippy::unwrap_used, reason = "what tests share is test code too")]

mod compare;
mod delivery;
mod dissect;
mod document;
mod site;
mod table;

use std::fmt::Write as _;
use std::sync::Arc;

use adit_lab::corpus::{Case, cases};
use adit_lab::skip::{has_guests, has_root};
use adit_lab::{Result, Run, report};

use compare::{Difference, differences};
use site::{Outcome, Site, ends};
use table::TABLE;

#[test]
fn differences_from_ipvs_are_those_of_the_table() {
    if !has_root() || !has_guests() {
        return;
    }
    let run = Arc::new(Run::new().unwrap());
    let cases = cases(&ends());
    let (adit, ipvs) = std::thread::scope(|scope| {
        let adit = scope.spawn(|| outcomes(Site::adit(&run), &cases));
        let ipvs = scope.spawn(|| outcomes(Site::ipvs(&run), &cases));
        (adit.join().unwrap(), ipvs.join().unwrap())
    });
    let each = cases.iter().zip(adit.iter().zip(&ipvs));
    let all: Vec<Difference> =
        each.flat_map(|(case, (adit, ipvs))| differences(&case.name, adit, ipvs)).collect();
    let peculiar = |case: &&Case| {
        // The outer TTL and identification, the first two of the table, differ everywhere.
        let usual = |one: &Difference| TABLE[..2].iter().any(|listed| listed.has(one));
        all.iter().any(|one| one.case == case.name && !usual(one))
    };
    report(&format!(
        "{} cases, {} of them with other differences than the outer TTL and identification",
        cases.len(),
        cases.iter().filter(peculiar).count()
    ));

    let mut wrong = String::new();
    for difference in &all {
        if !TABLE.iter().any(|listed| listed.has(difference)) {
            let _ = writeln!(wrong, "not in the table: {difference}");
        }
    }
    for listed in TABLE {
        for missing in listed.missing(&all) {
            let _ = writeln!(wrong, "no longer there: {}: {missing}", listed.what);
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    // A director that does nothing would not differ from one that does nothing.
    let busy = |outcomes: &[Outcome]| {
        let forwarding = outcomes.iter().filter(|outcome| !outcome.forwarded.is_empty()).count();
        let answering = outcomes.iter().filter(|outcome| !outcome.answers.is_empty()).count();
        assert!(forwarding > cases.len() / 2, "{forwarding} of {} cases forwarded", cases.len());
        assert!(answering > 20, "{answering} of {} cases answered", cases.len());
    };
    busy(&adit);
    busy(&ipvs);
}

fn outcomes(site: Result<Site>, cases: &[Case]) -> Vec<Outcome> {
    let mut site = site.unwrap();
    let pass =
        |case: &Case| site.pass(case).unwrap_or_else(|error| panic!("{}: {error}", case.name));
    cases.iter().map(pass).collect()
}
