//! The table of services and real servers: its lines, and which columns there is room for.

use super::super::live::vip_endpoint;
use super::super::rate::Rate;
use super::model::{Model, Seen, Sort};
use super::numbers::{count, short};
use crate::control::admin::api::{RealView, ServiceView};
use ratatui::text::Span;
use std::cmp::Ordering;

/// A column behind the one of names, in the order of their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    State,
    Weight,
    Active,
    Inactive,
    New,
    Packets,
    Bits,
    PathMtu,
    Egress,
}

/// Widest state or way that is shown whole; others are cut.
const WIDEST: usize = 28;

impl Column {
    /// In the order in which they get room, and how much they leave to names at least.
    const BY_NEED: [(Column, usize); 9] = [
        (Column::State, 16),
        (Column::Bits, 16),
        (Column::Active, 16),
        (Column::Packets, 16),
        (Column::Weight, 16),
        (Column::New, 16),
        // These come only where names lose nothing by it.
        (Column::Inactive, 48),
        (Column::PathMtu, 48),
        (Column::Egress, 48),
    ];

    pub(super) fn title(self) -> &'static str {
        match self {
            Column::State => "State",
            Column::Weight => "Weight",
            Column::Active => "Active",
            Column::Inactive => "InAct",
            Column::New => "New/s",
            Column::Packets => "Packet/s",
            Column::Bits => "Bit/s",
            Column::PathMtu => "PMTU",
            Column::Egress => "Egress",
        }
    }

    /// Whether it has numbers.
    pub(super) fn right(self) -> bool {
        !matches!(self, Column::State | Column::Egress)
    }

    /// Whether the table is sorted by it.
    pub(super) fn sorts(self, sort: Sort) -> bool {
        self.title() == Column::of(sort).map_or("", Column::title)
    }

    fn of(sort: Sort) -> Option<Column> {
        match sort {
            Sort::Name => None,
            Sort::Bits => Some(Column::Bits),
            Sort::Packets => Some(Column::Packets),
            Sort::New => Some(Column::New),
            Sort::Active => Some(Column::Active),
        }
    }
}

/// A line of the table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) service: bool,
    cells: [String; 9],
}

impl Row {
    pub(super) fn cell(&self, column: Column) -> &str {
        &self.cells[column as usize]
    }
}

/// What is sorted by.
#[derive(Debug, Clone, Copy, Default)]
struct Measure {
    rate: Rate,
    active: u64,
}

impl Measure {
    /// The larger first.
    fn compare(self, other: Self, sort: Sort) -> Ordering {
        match sort {
            Sort::Name => Ordering::Equal,
            Sort::Bits => other.rate.bytes_per_second.total_cmp(&self.rate.bytes_per_second),
            Sort::Packets => other.rate.packets_per_second.total_cmp(&self.rate.packets_per_second),
            Sort::New => {
                other.rate.connections_per_second.total_cmp(&self.rate.connections_per_second)
            }
            Sort::Active => other.active.cmp(&self.active),
        }
    }
}

/// All lines, sorted.
pub(super) fn rows(model: &Model) -> Vec<Row> {
    let Some(seen) = model.seen() else { return Vec::new() };
    let mut services: Vec<(Measure, Vec<Row>)> =
        (0..seen.services.len()).map(|index| under(seen, index, model.sort)).collect();
    // Stable: what is equal stays in the director's order.
    services.sort_by(|a, b| a.0.compare(b.0, model.sort));
    services.into_iter().flat_map(|(_, rows)| rows).collect()
}

/// A service's line, and those of its real servers.
fn under(seen: &Seen, index: usize, sort: Sort) -> (Measure, Vec<Row>) {
    let service = &seen.services[index];
    let rates = seen.rates.as_ref().and_then(|rates| rates.of.services.get(index));
    let mut reals: Vec<(Measure, Row)> = (service.reals.iter().enumerate())
        .map(|(at, real)| {
            let rate = rates.and_then(|rates| rates.reals.get(at)).map(|real| real.rate);
            let measure = Measure { rate: rate.unwrap_or_default(), active: real.counters.active };
            (measure, real_row(real, rate))
        })
        .collect();
    reals.sort_by(|a, b| a.0.compare(b.0, sort));
    let rate = rates.map(|rates| rates.rate);
    let active = service.reals.iter().map(|real| real.counters.active).sum();
    let measure = Measure { rate: rate.unwrap_or_default(), active };
    let mut rows = vec![service_row(service, rate, active)];
    rows.extend(reals.into_iter().map(|(_, row)| row));
    (measure, rows)
}

fn rates_of(rate: Option<Rate>) -> [String; 3] {
    let shown = |value: fn(&Rate) -> f64| rate.as_ref().map_or("-".to_owned(), |r| short(value(r)));
    [
        shown(|r| r.connections_per_second),
        shown(|r| r.packets_per_second),
        shown(|r| r.bytes_per_second * 8.0),
    ]
}

fn service_row(service: &ServiceView, rate: Option<Rate>, active: u64) -> Row {
    let up = service.reals.iter().filter(|real| real.state == "up").count();
    let state = match service.configured {
        true => format!("{up}/{} up", service.reals.len()),
        false => "removed".to_owned(),
    };
    let name = if service.name.is_empty() { "?" } else { &service.name };
    let name = format!(
        "{name} {} {} {}",
        service.protocol.to_uppercase(),
        vip_endpoint(service.vip, &service.ports),
        service.scheduler
    );
    let inactive: u64 = service.reals.iter().map(|real| real.counters.inactive).sum();
    let [new, packets, bits] = rates_of(rate);
    let (active, inactive) = (count(active), count(inactive));
    let none = String::new;
    let cells = [state, none(), active, inactive, new, packets, bits, none(), none()];
    Row { name, service: true, cells }
}

fn real_row(real: &RealView, rate: Option<Rate>) -> Row {
    let weight = match real.effective_weight == real.weight {
        true => real.weight.to_string(),
        false => format!("{}/{}", real.effective_weight, real.weight),
    };
    let [new, packets, bits] = rates_of(rate);
    let state = match real.drain.as_ref().and_then(|drain| drain.remaining) {
        Some(remaining) => format!("{}, {} left", real.state, count(remaining)),
        None => real.state.clone(),
    };
    let cells = [
        state,
        weight,
        count(real.counters.active),
        count(real.counters.inactive),
        new,
        packets,
        bits,
        real.path_mtu.to_string(),
        real.egress.clone(),
    ];
    Row { name: format!("  {}", real.address), service: false, cells }
}

/// Width of the column of names, and the others with theirs.
pub(super) fn columns(rows: &[Row], width: usize) -> (usize, Vec<(Column, usize)>) {
    let longest = rows.iter().map(|row| text_width(&row.name)).max().unwrap_or(0);
    let wide = |column: Column| {
        let cells = rows.iter().map(|row| text_width(row.cell(column)));
        cells.max().unwrap_or(0).max(column.title().len()).min(WIDEST)
    };
    let (mut names, mut chosen) = (width, Vec::new());
    for (column, least) in Column::BY_NEED {
        // Shorter names leave more.
        let least = if least > 16 { least.min(longest.max(16)) } else { least };
        let takes = wide(column) + 1;
        if names < least + takes {
            break;
        }
        names -= takes;
        chosen.push((column, takes - 1));
    }
    chosen.sort_by_key(|(column, _)| *column as usize);
    (names, chosen)
}

fn text_width(text: &str) -> usize {
    Span::raw(text).width()
}

/// The text in `width` columns; of one that is longer the start, or with `middle` start and end.
pub(super) fn fitted(text: &str, width: usize, middle: bool) -> String {
    if text_width(text) <= width {
        return text.to_owned();
    }
    let Some(room) = width.checked_sub(1) else { return String::new() };
    let tail = if middle { room / 2 } else { 0 };
    let start = taken(text.chars(), room - tail);
    let end: String = taken(text.chars().rev(), tail).chars().rev().collect();
    format!("{start}…{end}")
}

/// As many characters as fit.
fn taken(characters: impl Iterator<Item = char>, width: usize) -> String {
    let mut text = String::new();
    for character in characters {
        text.push(character);
        if text_width(&text) > width {
            text.pop();
            break;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::busy;
    use super::*;

    #[test]
    fn long_texts_are_cut_where_it_hurts_least() {
        assert_eq!(fitted("orders-read", 11, false), "orders-read");
        assert_eq!(fitted("orders-read", 7, false), "orders…");
        assert_eq!(fitted("2001:db8:1:2:3:4:5:66", 11, true), "2001:…:5:66");
        assert_eq!(fitted("数据库数据库", 6, false), "数据…");
        assert_eq!([0, 1, 2].map(|width| fitted("abc", width, true)), ["", "…", "a…"]);
        for width in 0..30 {
            assert!(text_width(&fitted("2001:db8::数据库:5:66", width, true)) <= width);
        }
    }

    #[test]
    fn columns_fill_the_width_and_never_more() {
        let rows = rows(&busy(5));
        for width in 0..200 {
            let (names, columns) = columns(&rows, width);
            let all = columns.iter().map(|(_, wide)| wide + 1).sum::<usize>();
            assert_eq!(names + all, width);
        }
        let count = |width| columns(&rows, width).1.len();
        assert_eq!([20, 40, 80, 200].map(count), [0, 3, 6, 9]);
    }

    #[test]
    fn each_sort_has_the_largest_first() {
        let mut model = busy(9);
        let order = |model: &Model| -> Vec<String> {
            rows(model).into_iter().filter(|row| !row.service).map(|row| row.name).collect()
        };
        let by_name = order(&model);
        model.sort = Sort::Active;
        let by_active = order(&model);
        assert_ne!(by_name, by_active);
        let rows = rows(&model);
        for service in rows.chunk_by(|_, next| !next.service) {
            let active: Vec<u64> =
                service[1..].iter().map(|row| row.cell(Column::Active).parse().unwrap()).collect();
            assert!(active.is_sorted_by(|a, b| a >= b), "{active:?}");
        }
        model.sort = Sort::Bits;
        assert_eq!(order(&model)[..9], by_name[..9].iter().rev().cloned().collect::<Vec<_>>());
    }
}
