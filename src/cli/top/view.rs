//! What is drawn: a pure function of the model and the area.

use super::keys;
use super::model::{DropRate, Model, Seen};
use super::numbers::{count, short};
use super::table::{self, Row, fitted};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Widget};
use std::time::Duration;

/// Lines above the table.
const HEADER: u16 = 4;
/// Lines between header and footer below which the table has them all.
const ENOUGH: u16 = 8;
/// Silence of a worker that is worth a word: it says that it is alive several times a second.
const SILENCE_MS: u64 = 2000;
/// Lines of a frame that is printed, at most; a buffer has less than 65,536 cells.
const PRINTED_CELLS: usize = 65_000;

/// Draws everything.
pub(super) fn draw(model: &Model, area: Rect, out: &mut Buffer) {
    let area = area.intersection(out.area);
    if area.is_empty() {
        return;
    }
    let parts = Parts::of(model, area);
    header(model, parts.header, out);
    rows(model, parts.table, out);
    drops(model, parts.drops, out);
    notes(model, parts.notes, out);
    footer(model, parts.footer, out);
    if model.help {
        help(model, area, out);
    }
}

/// One frame as text, as tall as it must be.
pub(super) fn text(model: &Model, width: u16) -> String {
    let wants = Wants::of(model);
    let room = PRINTED_CELLS / usize::from(width.max(1));
    let lines = usize::from(HEADER) + wants.table + wants.drops + wants.notes;
    // Without the footer: nobody presses keys.
    let height = u16::try_from(lines.min(room)).unwrap_or(u16::MAX);
    let area = Rect::new(0, 0, width, height);
    let mut out = Buffer::empty(Rect { height: height.saturating_add(1), ..area });
    draw(model, out.area, &mut out);
    let mut text = String::new();
    for y in 0..height {
        let mut line = String::new();
        let mut x = 0;
        while x < width {
            let symbol = out[(x, y)].symbol();
            line.push_str(symbol);
            // A wide character is followed by a cell of nothing.
            x += u16::try_from(Span::raw(symbol).width().max(1)).unwrap_or(1);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Lines of the table that are seen at a time.
pub(super) fn page(model: &Model, area: Rect) -> usize {
    usize::from(Parts::of(model, area).table.height.saturating_sub(1))
}

/// How far the table can be scrolled.
pub(super) fn last_scroll(model: &Model, area: Rect) -> usize {
    lines(model).saturating_sub(page(model, area))
}

/// Lines of the whole table.
fn lines(model: &Model) -> usize {
    model.seen().map_or(0, |seen| seen.services.iter().map(|s| 1 + s.reals.len()).sum())
}

/// How many lines each part would like, with its title.
struct Wants {
    table: usize,
    drops: usize,
    notes: usize,
}

impl Wants {
    fn of(model: &Model) -> Self {
        let drops = model.seen().map_or(0, |seen| 1 + seen.drops.len());
        let warnings = model.seen().map_or(0, |seen| seen.status.warnings.len());
        let notes = warnings + model.events().len();
        Wants { table: 1 + lines(model), drops, notes: if notes > 0 { 1 + notes } else { 0 } }
    }
}

/// Where each part is.
#[derive(Debug)]
struct Parts {
    header: Rect,
    table: Rect,
    drops: Rect,
    notes: Rect,
    footer: Rect,
}

impl Parts {
    fn of(model: &Model, area: Rect) -> Self {
        let header = HEADER.min(area.height);
        let footer = u16::from(area.height > header);
        let body = area.height - header - footer;
        let wants = Wants::of(model);
        let up_to = |want: usize, most: u16| u16::try_from(want).unwrap_or(u16::MAX).min(most);
        let (mut drops, mut notes) = (0, 0);
        if body >= ENOUGH {
            drops = up_to(wants.drops, body / 4);
            notes = up_to(wants.notes, body / 4);
            // What the table leaves over.
            let mut over = (body - drops - notes).saturating_sub(up_to(wants.table, body));
            let more = up_to(wants.notes, notes + over) - notes;
            (notes, over) = (notes + more, over - more);
            drops = up_to(wants.drops, drops + over);
        }
        let table = body - drops - notes;
        let mut y = area.y;
        let mut next = |height: u16| {
            let part = Rect { y, height, ..area };
            y += height;
            part
        };
        Parts {
            header: next(header),
            table: next(table),
            drops: next(drops),
            notes: next(notes),
            footer: next(footer),
        }
    }
}

/// A line of a part, if the part has it.
fn line(part: Rect, number: usize) -> Option<Rect> {
    let number = u16::try_from(number).ok().filter(|&number| number < part.height)?;
    Some(Rect { y: part.y + number, height: 1, ..part })
}

fn put(part: Rect, number: usize, text: impl Into<String>, style: Style, out: &mut Buffer) {
    if let Some(at) = line(part, number) {
        let text = fitted(&text.into(), usize::from(at.width), false);
        Line::styled(text, style).render(at, out);
    }
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn title(part: Rect, text: &str, out: &mut Buffer) {
    put(part, 0, text, bold().add_modifier(Modifier::UNDERLINED), out);
}

impl Model {
    /// A style in a colour, where there are colours.
    fn coloured(&self, color: Color) -> Style {
        if self.colours { Style::new().fg(color) } else { Style::new() }
    }

    fn of_state(&self, state: &str) -> Style {
        // `drained, 12 left`, perhaps cut.
        match state.split([',', '…']).next().unwrap_or_default() {
            "up" => self.coloured(Color::Green),
            "overloaded" | "drained" | "draining" => self.coloured(Color::Yellow),
            _ => self.coloured(Color::Red),
        }
    }

    fn of_severity(&self, severity: &str) -> Style {
        match severity {
            "error" => self.coloured(Color::Red).add_modifier(Modifier::BOLD),
            "warning" => self.coloured(Color::Yellow),
            _ => Style::new(),
        }
    }
}

fn seconds(time: Duration) -> String {
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}

fn header(model: &Model, part: Rect, out: &mut Buffer) {
    let Some(seen) = model.seen() else {
        put(part, 0, "adit top", bold(), out);
        put(part, 1, format!("waiting for the director at {}", model.socket), Style::new(), out);
        if let Some(lost) = model.lost() {
            put(part, 2, &lost.why, model.of_severity("error"), out);
        }
        return;
    };
    let status = &seen.status;
    let first = format!(
        "adit {}  {} on {}, {}  up {}",
        status.version,
        status.tap,
        status.interface,
        status.engine,
        seconds(Duration::from_secs(status.uptime_seconds))
    );
    put(part, 0, first, bold(), out);
    doing(model, part, out);
    put(part, 1, rates(seen), Style::new(), out);
    put(part, 2, connections(seen), Style::new(), out);
    match model.lost() {
        Some(lost) => {
            let text = format!("{}; trying again", lost.why);
            put(part, 3, text, model.of_severity("error"), out);
        }
        None => put(part, 3, totals(seen), Style::new(), out),
    }
}

/// To the right in the first line: whether what is shown is new.
fn doing(model: &Model, part: Rect, out: &mut Buffer) {
    let Some(first) = line(part, 0) else { return };
    let (text, style) = match model.lost() {
        Some(lost) => {
            let text = format!(" NO ANSWER for {} ", seconds(lost.now.saturating_sub(lost.since)));
            (text, model.of_severity("error").add_modifier(Modifier::REVERSED))
        }
        None if model.paused => (" PAUSED ".to_owned(), bold().add_modifier(Modifier::REVERSED)),
        None => (format!(" every {}", seconds(model.interval)), Style::new()),
    };
    let width = u16::try_from(Span::raw(&text).width()).unwrap_or(u16::MAX).min(first.width);
    let at = Rect { x: first.right() - width, width, ..first };
    Clear.render(at, out);
    Line::styled(text, style).render(at, out);
}

fn rates(seen: &Seen) -> String {
    let Some(rates) = &seen.rates else { return "rates come with the next reading".to_owned() };
    let new: f64 = rates.of.services.iter().map(|s| s.rate.connections_per_second).sum();
    format!(
        "received {} packet/s  forwarded {}  dropped {}  {} bit/s  new {}/s",
        short(rates.received_per_second),
        short(rates.forwarded_per_second),
        short(rates.dropped_per_second),
        short(rates.bits_per_second),
        short(new)
    )
}

fn connections(seen: &Seen) -> String {
    let (status, flows) = (&seen.status, &seen.status.flows);
    let used = status.active + status.inactive;
    format!(
        "flows {} of {}: established {}  half-open {}  unproven {}  closing {}",
        count(used),
        count(u64::from(status.max_connections)),
        count(flows.established),
        count(flows.half_open),
        count(flows.unproven),
        count(flows.closing_fin + flows.closing_rst)
    )
}

fn totals(seen: &Seen) -> String {
    let (status, totals) = (&seen.status, &seen.status.totals);
    let silence = match status.worker_silence_ms {
        ms if ms > SILENCE_MS => format!("THE WORKER IS SILENT for {} s  ", ms / 1000),
        _ => String::new(),
    };
    format!(
        "{silence}in all: received {}  forwarded {}  replied {}  passed {}  dropped {}",
        count(totals.received),
        count(totals.forwarded),
        count(totals.replied),
        count(totals.passed),
        count(status.dropped)
    )
}

fn rows(model: &Model, part: Rect, out: &mut Buffer) {
    if model.seen().is_none() || part.is_empty() {
        return;
    }
    let rows = table::rows(model);
    let (names, columns) = table::columns(&rows, usize::from(part.width));
    let page = usize::from(part.height - 1);
    let above = model.scroll.min(rows.len().saturating_sub(page));
    let below = rows.len().saturating_sub(above + page);
    let what = match (above, below, names) {
        (0, 0, _) => "Service, real servers".to_owned(),
        (_, _, ..40) => format!("↑{above} ↓{below}"),
        _ => format!("Service, real servers  ↑{above} ↓{below}"),
    };
    let mut head = format!("{:<names$}", fitted(&what, names, false));
    for (column, width) in &columns {
        // One character wider, for the gap, so that the mark has room.
        let mark = if column.sorts(model.sort) { "▾" } else { "" };
        let text = format!("{mark}{}", column.title());
        head.push_str(&match column.right() {
            true => format!("{text:>0$}", width + 1),
            false => format!(" {text:<width$}"),
        });
    }
    put(part, 0, head, bold().add_modifier(Modifier::REVERSED), out);
    for (number, row) in rows.iter().skip(above).take(page).enumerate() {
        if let Some(at) = line(part, number + 1) {
            draw_row(model, row, names, &columns, at, out);
        }
    }
}

fn draw_row(
    model: &Model,
    row: &Row,
    names: usize,
    columns: &[(table::Column, usize)],
    at: Rect,
    out: &mut Buffer,
) {
    let style = if row.service { bold() } else { Style::new() };
    let name = fitted(&row.name, names, !row.service);
    out.set_stringn(at.x, at.y, name, names, style);
    let mut x = usize::from(at.x) + names;
    for (column, width) in columns {
        let text = fitted(row.cell(*column), *width, false);
        let pad = match column.right() {
            true => width.saturating_sub(Span::raw(&text).width()),
            false => 0,
        };
        let style = if *column == table::Column::State && !row.service {
            model.of_state(&text)
        } else {
            style
        };
        if let Ok(from) = u16::try_from(x + 1 + pad) {
            out.set_stringn(from, at.y, text, *width - pad, style);
        }
        x += width + 1;
    }
}

fn drops(model: &Model, part: Rect, out: &mut Buffer) {
    let Some(seen) = model.seen() else { return };
    if seen.drops.is_empty() {
        title(part, "Drops: none", out);
        return;
    }
    let hidden = seen.drops.len().saturating_sub(usize::from(part.height.saturating_sub(1)));
    let more = if hidden > 0 { format!(" ({hidden} more)") } else { String::new() };
    title(part, &format!("Drops: packets, per second, reason{more}"), out);
    for (number, drop) in seen.drops.iter().enumerate() {
        put(part, number + 1, drop_line(drop), Style::new(), out);
    }
}

fn drop_line(of: &DropRate) -> String {
    let rate = of.per_second.map_or("-".to_owned(), short);
    format!("{:>7} {rate:>6}  {}: {}", count(of.drop.count), of.drop.reason, of.drop.meaning)
}

/// What is wrong, and below it what happened, the latest first.
fn notes(model: &Model, part: Rect, out: &mut Buffer) {
    let warnings = model.seen().map_or(&[][..], |seen| &seen.status.warnings);
    let all = warnings.len() + model.events().len();
    if all == 0 {
        return;
    }
    let hidden = all.saturating_sub(usize::from(part.height.saturating_sub(1)));
    let more = if hidden > 0 { format!(" ({hidden} more)") } else { String::new() };
    title(part, &format!("Conditions and events{more}"), out);
    for (number, warning) in warnings.iter().enumerate() {
        let text = format!("{}: {}", warning.severity, warning.message);
        put(part, number + 1, text, model.of_severity(&warning.severity), out);
    }
    for (number, event) in model.events().rev().enumerate() {
        let ago = seconds(model.now().saturating_sub(event.at));
        let text = format!("{ago} ago: {}", event.what);
        put(part, warnings.len() + number + 1, text, Style::new(), out);
    }
}

fn footer(model: &Model, part: Rect, out: &mut Buffer) {
    let text = format!(
        "q quit  ? help  s sort: {}  p {}  ↑↓ scroll  + - interval",
        model.sort.name(),
        if model.paused { "go on" } else { "pause" }
    );
    let text = format!("{text:<width$}", width = usize::from(part.width));
    put(part, 0, text, Style::new().add_modifier(Modifier::REVERSED), out);
}

fn help(model: &Model, area: Rect, out: &mut Buffer) {
    Clear.render(area, out);
    put(area, 0, "adit top: keys", bold(), out);
    for (number, (key, what)) in keys::HELP.iter().enumerate() {
        put(area, number + 1, format!("  {key:<13} {what}"), Style::new(), out);
    }
    let columns = [
        "Columns: State and Weight (effective/configured); Active and InAct: connections that",
        "are established and that are not; New/s, Packet/s and Bit/s: from clients; PMTU and",
        "Egress: path MTU and way to the real server. Wider screens show more of them.",
    ];
    for (number, text) in columns.iter().enumerate() {
        put(area, keys::HELP.len() + 2 + number, *text, Style::new(), out);
    }
    let asked = format!("{}, every {}", model.socket, seconds(model.interval));
    put(area, keys::HELP.len() + columns.len() + 3, asked, Style::new(), out);
}

#[cfg(test)]
pub(super) mod tests;
