//! Full-screen drawing on a terminal until a key or a signal ends it. The screen is the alternate one, and keys are not
//! echoed: the terminal is restored however the program ends.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use console::Term;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};

/// Control sequences to enter and leave the alternate screen.
const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";
/// The character that Ctrl-C sends.
const CTRL_C: u8 = 3;

/// The size of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) struct TerminalSize {
    pub lines: usize,
    pub columns: usize,
}

impl TerminalSize {
    /// The size for output to a file or pipe.
    pub const UNLIMITED: TerminalSize = TerminalSize { lines: usize::MAX, columns: usize::MAX };
}

#[derive(Debug)]
pub(in crate::cli) struct Screen {
    terminal: Term,
    /// The terminal modes to restore; `None` if standard input is not a terminal, and no keys are read.
    modes: Option<Termios>,
    /// Set by a signal that ends the program.
    interrupted: Arc<AtomicBool>,
}

impl Screen {
    pub fn open() -> io::Result<Screen> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, interrupted.clone())?;
        }
        // Without a handler, a change of the window size would not end a wait.
        signal_hook::flag::register(SIGWINCH, Arc::default())?;
        let modes = if io::stdin().is_terminal() { Some(tcgetattr(io::stdin())?) } else { None };
        // Buffered output is drawn at once and does not flicker.
        let screen = Screen { terminal: Term::buffered_stdout(), modes, interrupted };
        if let Some(mut modes) = screen.modes.clone() {
            modes.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
            tcsetattr(io::stdin(), OptionalActions::Now, &modes)?;
        }
        screen.terminal.write_str(ENTER)?;
        screen.terminal.hide_cursor()?;
        screen.terminal.flush()?;
        Ok(screen)
    }

    pub fn size(&self) -> TerminalSize {
        let (lines, columns) = self.terminal.size();
        TerminalSize { lines: lines.into(), columns: columns.into() }
    }

    /// Draws the text, truncated to the screen.
    pub fn draw(&self, text: &str) -> io::Result<()> {
        let TerminalSize { lines, columns } = self.size();
        self.terminal.move_cursor_to(0, 0)?;
        let mut below = lines;
        for line in text.lines().take(lines) {
            self.terminal.clear_line()?;
            self.terminal.write_str(&console::truncate_str(line, columns, ""))?;
            below -= 1;
            // A line break at the bottom would scroll the screen.
            if below > 0 {
                self.terminal.write_str("\n")?;
            }
        }
        if below > 0 {
            self.terminal.clear_to_end_of_screen()?;
        }
        self.terminal.flush()
    }

    /// Waits for `time` or until the window size changes. Returns false if a key or a signal ends the program.
    pub fn wait(&self, time: Duration) -> io::Result<bool> {
        let (input, time) = (io::stdin(), Timespec::try_from(time).ok());
        let mut keys = [PollFd::new(&input, PollFlags::IN)];
        let watched = if self.modes.is_some() { &mut keys[..] } else { &mut [] };
        match poll(watched, time.as_ref()) {
            Ok(0) | Err(Errno::INTR) => Ok(!self.interrupted.load(Ordering::Relaxed)),
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
        // Errors do not matter: the terminal may be gone.
        let _ = self.terminal.show_cursor();
        let _ = self.terminal.write_str(LEAVE);
        let _ = self.terminal.flush();
        if let Some(modes) = &self.modes {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, modes);
        }
    }
}
