//! What keys do. Pure: a key and the model in, what is left to do out.

use super::model::Model;
use super::view;
use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::Rect;
use std::time::Duration;

/// What the screen has to do after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Draw.
    Draw,
    /// Ask the director now, and draw.
    Ask,
    /// End.
    Quit,
}

/// Seconds between two readings that `+` and `-` go through.
const INTERVALS: [u64; 9] = [1, 2, 5, 10, 30, 60, 300, 900, 3600];

/// Keys, and what they do; the help shows these.
pub(super) const HELP: [(&str, &str); 9] = [
    ("q Esc Ctrl-C", "quit"),
    ("↑ ↓ k j", "scroll the table by a line"),
    ("PgUp PgDn", "by a page; Home g: to its start, End G: to its end"),
    ("s", "sort by name, bit/s, packet/s, new/s, active connections"),
    ("p Space", "pause, and go on"),
    ("+ -", "more or less time between two readings"),
    ("r", "read now"),
    ("? h", "this help"),
    ("any key", "leaves it"),
];

/// Carries out a key on a screen of this `area`.
#[allow(clippy::wildcard_enum_match_arm, reason = "there are many keys, and most do nothing")]
pub(super) fn press(model: &mut Model, key: KeyEvent, area: Rect) -> Then {
    if key.kind == KeyEventKind::Release {
        return Then::Draw;
    }
    if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
        return Then::Quit;
    }
    if std::mem::take(&mut model.help) && key.code != KeyCode::Char('q') {
        return Then::Draw;
    }
    let (page, end) = (view::page(model, area), view::last_scroll(model, area));
    let at = model.scroll.min(end);
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return Then::Quit,
        KeyCode::Char('?' | 'h') | KeyCode::F(1) => model.help = true,
        KeyCode::Char('s') => model.sort = model.sort.next(),
        KeyCode::Char('p' | ' ') => {
            model.paused = !model.paused;
            return if model.paused { Then::Draw } else { Then::Ask };
        }
        KeyCode::Char('r') => return Then::Ask,
        KeyCode::Char('+' | '=') => model.interval = next_interval(model.interval),
        KeyCode::Char('-') => model.interval = interval_before(model.interval),
        KeyCode::Up | KeyCode::Char('k') => model.scroll = at.saturating_sub(1),
        KeyCode::Down | KeyCode::Char('j') => model.scroll = (at + 1).min(end),
        KeyCode::PageUp => model.scroll = at.saturating_sub(page),
        KeyCode::PageDown => model.scroll = (at + page).min(end),
        KeyCode::Home | KeyCode::Char('g') => model.scroll = 0,
        KeyCode::End | KeyCode::Char('G') => model.scroll = end,
        // Everything else on a keyboard.
        _ => {}
    }
    Then::Draw
}

fn next_interval(now: Duration) -> Duration {
    let next = INTERVALS.into_iter().find(|&seconds| seconds > now.as_secs());
    next.map_or(now, Duration::from_secs)
}

fn interval_before(now: Duration) -> Duration {
    let before = INTERVALS.into_iter().rev().find(|&seconds| seconds < now.as_secs());
    before.map_or(now, Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::super::model::Sort;
    use super::super::view::tests::busy;
    use super::*;

    const AREA: Rect = Rect::new(0, 0, 80, 24);

    fn press(model: &mut Model, code: KeyCode) -> Then {
        super::press(model, KeyEvent::from(code), AREA)
    }

    #[test]
    fn keys_end_it() {
        let mut model = busy(3);
        for code in [KeyCode::Char('q'), KeyCode::Esc] {
            assert_eq!(press(&mut model, code), Then::Quit);
        }
        let key = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(super::press(&mut model, key, AREA), Then::Quit);
        assert_eq!(press(&mut model, KeyCode::Char('c')), Then::Draw, "without Ctrl");
    }

    #[test]
    fn help_is_left_by_any_key_which_does_nothing_else() {
        let mut model = busy(3);
        press(&mut model, KeyCode::Char('?'));
        assert!(model.help);
        assert_eq!(press(&mut model, KeyCode::Esc), Then::Draw);
        assert!(!model.help);
        press(&mut model, KeyCode::Char('h'));
        press(&mut model, KeyCode::Char('s'));
        assert_eq!((model.help, model.sort), (false, Sort::Name));
    }

    #[test]
    fn scrolling_ends_at_both_ends() {
        let mut model = busy(50);
        press(&mut model, KeyCode::Up);
        assert_eq!(model.scroll, 0);
        press(&mut model, KeyCode::Char('G'));
        let end = model.scroll;
        assert!(end > 30 && end < 51, "{end}");
        press(&mut model, KeyCode::Char('j'));
        press(&mut model, KeyCode::PageDown);
        assert_eq!(model.scroll, end, "not past the end");
        press(&mut model, KeyCode::Char('k'));
        assert_eq!(model.scroll, end - 1);
        press(&mut model, KeyCode::Home);
        assert_eq!(model.scroll, 0);
        // What was below may have gone meanwhile.
        model.scroll = 1000;
        press(&mut model, KeyCode::Char('k'));
        assert_eq!(model.scroll, end - 1);
    }

    #[test]
    fn sorting_goes_round_and_intervals_stop_at_their_ends() {
        let mut model = busy(3);
        let mut seen = vec![model.sort];
        while press(&mut model, KeyCode::Char('s')) == Then::Draw && model.sort != Sort::Name {
            seen.push(model.sort);
        }
        assert_eq!(seen.len(), 5);
        model.interval = Duration::from_secs(7);
        press(&mut model, KeyCode::Char('+'));
        assert_eq!(model.interval.as_secs(), 10);
        for _ in 0..20 {
            press(&mut model, KeyCode::Char('-'));
        }
        assert_eq!(model.interval.as_secs(), 1);
        for _ in 0..20 {
            press(&mut model, KeyCode::Char('+'));
        }
        assert_eq!(model.interval.as_secs(), 3600);
    }

    #[test]
    fn pausing_asks_when_it_ends() {
        let mut model = busy(3);
        assert_eq!(press(&mut model, KeyCode::Char('p')), Then::Draw);
        assert!(model.paused);
        assert_eq!(press(&mut model, KeyCode::Char(' ')), Then::Ask);
        assert!(!model.paused);
    }
}
