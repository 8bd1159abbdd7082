//! The terminal, the clock and the socket: what is not pure of `top`.

use super::keys::{self, Then};
use super::model::{Model, Reading};
use super::{read, view};
use crate::control::admin::client::{Client, ClientError};
use crossterm::event::{Event, EventStream};
use crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use crossterm::{cursor, execute};
use futures_util::StreamExt;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::layout::Rect;
use std::io::{self, IsTerminal, Stdout};
use std::path::{Path, PathBuf};
use std::sync::Once;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Columns of a frame where there is no terminal to ask.
const WIDTH: u16 = 80;
/// Columns of a frame that make sense at all.
const WIDTHS: std::ops::RangeInclusive<u16> = 20..=1000;

/// Why this terminal cannot be drawn on, if it cannot.
pub(super) fn usable() -> Result<(), String> {
    if !io::stdout().is_terminal() {
        return Err("standard output is no terminal".to_owned());
    }
    match std::env::var("TERM") {
        Ok(name) if name == "dumb" => {
            Err("this terminal cannot be drawn on (TERM=dumb)".to_owned())
        }
        Ok(name) if !name.is_empty() => Ok(()),
        _ => Err("the kind of terminal is not known (TERM is not set)".to_owned()),
    }
}

/// Columns of a printed frame: as `COLUMNS` says, else the terminal, else 80.
pub(super) fn width() -> u16 {
    let asked = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let terminal = || {
        let size = io::stdout().is_terminal().then(crossterm::terminal::size)?;
        size.ok().map(|(width, _)| width)
    };
    asked.or_else(terminal).filter(|width| WIDTHS.contains(width)).unwrap_or(WIDTH)
}

/// The terminal while it is ours. Given back when this is dropped, and before a panic is told.
struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// When it is not one, or is gone.
    fn take() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        // A panic of the release build ends the process without unwinding.
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                before(panic);
            }));
        });
        enable_raw_mode()?;
        // From here on everything goes through the guard.
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout())).inspect_err(|_| {
            give_back();
        })?;
        let screen = Screen { terminal };
        execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }

    fn draw(&mut self, model: &Model) -> io::Result<()> {
        self.terminal.draw(|frame| view::draw(model, frame.area(), frame.buffer_mut()))?;
        Ok(())
    }

    fn area(&self) -> Rect {
        self.terminal
            .size()
            .map_or(Rect::ZERO, |size| Rect::from((ratatui::layout::Position::ORIGIN, size)))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Puts the terminal back as it was. Harmless when it was not taken.
fn give_back() {
    // A terminal that is gone needs nothing any more.
    let _ = execute!(io::stdout(), LeaveAlternateScreen, cursor::Show);
    let _ = disable_raw_mode();
}

/// Signals that end it in order.
struct Ends([Signal; 4]);

impl Ends {
    fn new() -> io::Result<Self> {
        let [int, term, hup, quit] = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::quit(),
        ]
        .map(signal);
        Ok(Ends([int?, term?, hup?, quit?]))
    }

    async fn any(&mut self) {
        let [int, term, hup, quit] = &mut self.0;
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = hup.recv() => {}
            _ = quit.recv() => {}
        }
    }
}

/// Shows the director that listens on `socket` until the user has seen enough; where nobody answers,
/// `find` tells where to ask next time.
///
/// # Errors
/// When the terminal does not work, or is gone.
pub(super) async fn run(
    mut model: Model,
    socket: &Path,
    find: impl Fn() -> PathBuf,
) -> io::Result<()> {
    let mut client = Client::new(socket);
    let mut ends = Ends::new()?;
    let mut screen = Screen::take()?;
    let mut events = EventStream::new();
    let start = Instant::now();
    let mut next = start;
    // Also in a pause.
    let mut wanted = true;
    let mut asking: Option<JoinHandle<Result<Reading, ClientError>>> = None;
    loop {
        screen.draw(&model)?;
        tokio::select! {
            () = ends.any() => return Ok(()),
            event = events.next() => match event {
                Some(Ok(Event::Key(key))) => match keys::press(&mut model, key, screen.area()) {
                    Then::Quit => return Ok(()),
                    Then::Ask => (wanted, next) = (true, Instant::now()),
                    // A shorter interval counts from now on.
                    Then::Draw => next = next.min(Instant::now() + model.interval),
                },
                // Of another size, or another event: draw again.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                // The terminal is gone.
                None => return Ok(()),
            },
            answer = answer(&mut asking) => {
                asking = None;
                match answer {
                    Ok(reading) => model.update(reading),
                    Err(why) => {
                        model.unanswered(start.elapsed(), &why);
                        let socket = find();
                        model.socket = socket.display().to_string();
                        client = Client::new(&socket);
                    }
                }
            }
            () = tokio::time::sleep_until(next), if asking.is_none() && (wanted || !model.paused) => {
                wanted = false;
                next = Instant::now() + model.interval;
                let client = client.clone();
                asking = Some(tokio::spawn(async move { read(&client, start).await }));
            }
        }
    }
}

/// The answer to what is being asked, whenever that is.
async fn answer(
    asking: &mut Option<JoinHandle<Result<Reading, ClientError>>>,
) -> Result<Reading, String> {
    match asking {
        Some(task) => match task.await {
            Ok(reading) => reading.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        },
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::pty::{Winsize, openpty};
    use nix::sys::termios::{LocalFlags, tcgetattr};
    use std::fs::File;
    use std::io::Read;
    use std::process::{Command, Stdio};

    /// Not a test by itself: what [`a_panic_gives_the_terminal_back`] starts in a terminal.
    #[test]
    #[ignore = "it panics on purpose, in a terminal of its own"]
    fn it_panics_on_the_screen() {
        let _screen = Screen::take().unwrap();
        let raw = tcgetattr(io::stdin()).unwrap();
        assert!(!raw.local_flags.contains(LocalFlags::ECHO), "the terminal is taken");
        // As in a release build, nothing is unwound.
        std::thread::spawn(|| panic!("on purpose")).join().unwrap_err();
        std::process::exit(7);
    }

    #[test]
    fn a_panic_gives_the_terminal_back() {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["cli::top::screen::tests::it_panics_on_the_screen", "--exact"])
            .args(["--ignored", "--nocapture"])
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let slave = pty.slave;
        assert_eq!(child.wait().unwrap().code(), Some(7), "it panicked where it should");
        assert_eq!(tcgetattr(&slave).unwrap(), before);
        drop(slave);
        let mut said = Vec::new();
        // With no other end left, reading ends with an error after all that was written.
        let _ = File::from(pty.master).read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        let at = |what: &str| said.find(what).unwrap_or_else(|| panic!("no {what:?} in {said:?}"));
        assert!(at("\x1b[?1049h") < at("\x1b[?1049l"));
        assert!(at("\x1b[?1049l") < at("on purpose"), "told on the user's own screen");
        assert!(at("\x1b[?25l") < at("\x1b[?25h"));
    }
}
