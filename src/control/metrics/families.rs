//! Families of series, each with its help and type.

use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;
use std::fmt;

/// A label's name and value.
pub(super) type Label<'a> = (&'static str, &'a str);

/// Where families are written, one after the other. One without series is there with its help, so
/// that every name can be found.
pub(super) struct Families<'a>(DescriptorEncoder<'a>);

impl<'a> Families<'a> {
    pub(super) const fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Families(encoder)
    }

    /// Something that only rises while the director runs. `name` ends in `_total`.
    pub(super) fn counter<'l, L: AsRef<[Label<'l>]>>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        // The encoder puts it there again.
        let stem = name.strip_suffix("_total").unwrap_or(name);
        let mut family = self.0.encode_descriptor(stem, help, None, MetricType::Counter)?;
        for (labels, value) in series {
            let labels = labels.as_ref();
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
        Ok(())
    }

    /// Something that rises and falls.
    pub(super) fn gauge<'l, L: AsRef<[Label<'l>]>, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            let labels = labels.as_ref();
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// Words, as labels of a series that is always 1.
    pub(super) fn info<'l, L: AsRef<[Label<'l>]>>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = L>,
    ) -> fmt::Result {
        self.gauge(name, help, series.into_iter().map(|labels| (labels, 1_u64)))
    }
}

/// What has one series without labels.
pub(super) const fn alone<V>(value: V) -> [([Label<'static>; 0], V); 1] {
    [([], value)]
}
