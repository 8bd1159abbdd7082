//! `adit metrics`: what Prometheus reads.

use super::{CommandError, Global, Outcome, converse, output};
use crate::control::admin::query::Query;
use clap::Args;
use hyper::Method;

/// `adit metrics`.
#[derive(Debug, Args)]
pub struct MetricsArgs {
    /// Add the names of node_exporter's ipvs collector, for dashboards made for IPVS.
    #[arg(long)]
    pub compat_ipvs: bool,
}

pub(super) fn run(args: &MetricsArgs, global: &Global) -> Result<Outcome, CommandError> {
    if global.json {
        output::error(
            "metrics have a text format of their own; `adit list --json` is for programs",
        );
        return Ok(Outcome::Refused);
    }
    let parameters: &[(&str, &str)] = if args.compat_ipvs { &[("compat", "ipvs")] } else { &[] };
    let target = format!("/v1/metrics{}", Query::write(parameters));
    let text = converse(global, |client| async move { client.whole(Method::GET, &target).await })?;
    output::raw(&text);
    Ok(Outcome::Fine)
}
