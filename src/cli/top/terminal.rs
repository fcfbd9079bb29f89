//! The terminal as a picture that is drawn again and again until a key or a signal ends that. However it ends, the terminal is left
//! as it was: the picture is on the screen that programs borrow, and what was typed is not echoed on it.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use console::Term;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};

/// To the screen without a past, and back.
const BORROW: &str = "\x1b[?1049h";
const GIVE_BACK: &str = "\x1b[?1049l";
/// As a key.
const CTRL_C: u8 = 3;

/// Room for a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) struct TerminalSize {
    pub lines: usize,
    pub columns: usize,
}

impl TerminalSize {
    /// Of what is no terminal.
    pub const ENDLESS: TerminalSize = TerminalSize { lines: usize::MAX, columns: usize::MAX };
}

#[derive(Debug)]
pub(in crate::cli) struct Screen {
    terminal: Term,
    /// How keys were read before; none are, where standard input is no terminal.
    modes: Option<Termios>,
    /// A signal has come that ends it.
    asked: Arc<AtomicBool>,
}

impl Screen {
    pub fn borrow() -> io::Result<Screen> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, asked.clone())?;
        }
        // Otherwise no wait would end when the window changes.
        signal_hook::flag::register(SIGWINCH, Arc::default())?;
        let modes = if io::stdin().is_terminal() { Some(tcgetattr(io::stdin())?) } else { None };
        // Buffered: a picture comes at once, and does not flicker.
        let screen = Screen { terminal: Term::buffered_stdout(), modes, asked };
        if let Some(mut modes) = screen.modes.clone() {
            modes.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
            tcsetattr(io::stdin(), OptionalActions::Now, &modes)?;
        }
        screen.terminal.write_str(BORROW)?;
        screen.terminal.hide_cursor()?;
        screen.terminal.flush()?;
        Ok(screen)
    }

    pub fn room(&self) -> TerminalSize {
        let (lines, columns) = self.terminal.size();
        TerminalSize { lines: lines.into(), columns: columns.into() }
    }

    /// Draws as much of the text as there is room for.
    pub fn draw(&self, text: &str) -> io::Result<()> {
        let TerminalSize { lines, columns } = self.room();
        self.terminal.move_cursor_to(0, 0)?;
        let mut below = lines;
        for line in text.lines().take(lines) {
            self.terminal.clear_line()?;
            self.terminal.write_str(&console::truncate_str(line, columns, ""))?;
            below -= 1;
            // At the bottom, the screen would move.
            if below > 0 {
                self.terminal.write_str("\n")?;
            }
        }
        if below > 0 {
            self.terminal.clear_to_end_of_screen()?;
        }
        self.terminal.flush()
    }

    /// Waits so long, or until the window has changed. False if somebody wants it to end.
    pub fn wait(&self, time: Duration) -> io::Result<bool> {
        let (input, time) = (io::stdin(), Timespec::try_from(time).ok());
        let mut keys = [PollFd::new(&input, PollFlags::IN)];
        let watched = if self.modes.is_some() { &mut keys[..] } else { &mut [] };
        match poll(watched, time.as_ref()) {
            Ok(0) | Err(Errno::INTR) => Ok(!self.asked.load(Ordering::Relaxed)),
            Ok(_) => {
                let mut typed = [0; 64];
                let count = rustix::io::read(&input, &mut typed)?;
                Ok(!matches!(typed[..count], [] | [CTRL_C | b'q' | b'Q', ..]))
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = self.terminal.show_cursor();
        let _ = self.terminal.write_str(GIVE_BACK);
        let _ = self.terminal.flush();
        if let Some(modes) = &self.modes {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, modes);
        }
    }
}
