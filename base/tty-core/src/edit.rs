//! Line editing: erasing by character, word and line, and showing the line again.
//!
//! Erasing changes only the part of the buffer between `canon` and `head`. On a display (`ECHOE`, `ECHOKE`) the erased
//! characters are wiped one by one, which needs to know how wide each was: control characters are two columns under
//! `ECHOCTL`, a tab reaches back to where the text before it ended, a UTF-8 sequence counts as one. On paper (`ECHOPRT`)
//! they are printed again between `\` and `/`.

use crate::LineDiscipline;
use crate::output::is_control;
use crate::termios::{ControlChar, LocalFlags};

/// How much to erase.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Char,
    Word,
    Line,
}

/// Letters and digits of ISO 8859-1, and the underscore.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || matches!(byte, 0xc0..=0xd6 | 0xd8..=0xf6 | 0xf8..=0xff)
}

impl LineDiscipline {
    /// Closes hard-copy erasing.
    pub(crate) fn finish_erasing(&mut self) {
        if core::mem::take(&mut self.erasing) {
            self.echo.byte(&self.termios, b'/');
        }
    }

    /// Shows the line being edited again, on a new line (`VREPRINT`).
    pub(crate) fn reprint(&mut self, byte: u8) {
        self.finish_erasing();
        self.echo.visible(&self.termios, byte);
        self.echo.byte(&self.termios, b'\n');
        let mut at = self.canon;
        while at != self.head {
            self.echo.visible(&self.termios, self.byte_at(at));
            at = at.wrapping_add(1);
        }
    }

    /// Acts on `VERASE`, `VWERASE` or `VKILL`.
    pub(crate) fn erase(&mut self, byte: u8) {
        if self.head == self.canon {
            return;
        }
        let extent = if self.termios.is(byte, ControlChar::Erase) {
            Extent::Char
        } else if self.termios.is(byte, ControlChar::Werase) {
            Extent::Word
        } else {
            Extent::Line
        };
        if extent == Extent::Line && self.kill_unseen() {
            return;
        }
        let mut in_word = false;
        while self.head != self.canon {
            let Some(start) = self.last_char_start() else { break };
            let first = self.byte_at(start);
            if extent == Extent::Word {
                if is_word(first) {
                    in_word = true;
                } else if in_word {
                    break;
                }
            }
            let end = core::mem::replace(&mut self.head, start);
            if self.local(LocalFlags::ECHO) {
                self.echo_erased(start, end, extent);
            }
            if extent == Extent::Char {
                break;
            }
        }
        if self.head == self.canon && self.local(LocalFlags::ECHO) {
            self.finish_erasing();
        }
    }

    /// Drops the line without wiping it from a display, if the settings want that; true if so.
    fn kill_unseen(&mut self) -> bool {
        let wipe = LocalFlags::ECHOK | LocalFlags::ECHOKE | LocalFlags::ECHOE;
        if self.local(LocalFlags::ECHO | wipe) {
            return false;
        }
        self.head = self.canon;
        if self.local(LocalFlags::ECHO) {
            self.finish_erasing();
            self.echo.visible(&self.termios, self.termios.char(ControlChar::Kill));
            if self.local(LocalFlags::ECHOK) {
                self.echo.byte(&self.termios, b'\n');
            }
        }
        true
    }

    /// Where the last character of the line begins; `None` if the line is only the rest of one.
    fn last_char_start(&self) -> Option<usize> {
        let mut at = self.head;
        while at != self.canon {
            at = at.wrapping_sub(1);
            if !self.termios.continues(self.byte_at(at)) {
                return Some(at);
            }
        }
        None
    }

    /// Echoes the erasure of the character in `start..end`.
    fn echo_erased(&mut self, start: usize, end: usize, extent: Extent) {
        let first = self.byte_at(start);
        if self.local(LocalFlags::ECHOPRT) {
            return self.echo_printed(start, end);
        }
        if extent == Extent::Char && !self.local(LocalFlags::ECHOE) {
            return self.echo.visible(&self.termios, self.termios.char(ControlChar::Erase));
        }
        if first == b'\t' {
            return self.wipe_tab(start);
        }
        let width = match (is_control(first), self.local(LocalFlags::ECHOCTL)) {
            (true, true) => 2,
            (true, false) => 0,
            (false, _) => 1,
        };
        for _ in 0..width {
            for byte in *b"\x08 \x08" {
                self.echo.byte(&self.termios, byte);
            }
        }
    }

    /// Prints an erased character again.
    fn echo_printed(&mut self, start: usize, end: usize) {
        if !self.erasing {
            self.echo.byte(&self.termios, b'\\');
            self.erasing = true;
        }
        self.echo.visible(&self.termios, self.byte_at(start));
        let mut at = start.wrapping_add(1);
        while at != end {
            self.echo.byte(&self.termios, self.byte_at(at));
            self.echo.cursor.column = self.echo.cursor.column.saturating_sub(1);
            at = at.wrapping_add(1);
        }
    }

    /// Moves back over an erased tab, to the end of the text that was before it.
    fn wipe_tab(&mut self, start: usize) {
        // Columns used since the tab before it, or since the line's start, which need not be a tab stop.
        let mut columns = 0u32;
        let mut origin = self.echo.cursor.line_start;
        let mut at = start;
        while at != self.canon {
            at = at.wrapping_sub(1);
            let byte = self.byte_at(at);
            if byte == b'\t' {
                origin = 0;
                break;
            }
            columns += if is_control(byte) {
                if self.local(LocalFlags::ECHOCTL) { 2 } else { 0 }
            } else {
                u32::from(!self.termios.continues(byte))
            };
        }
        for _ in 0..8 - (columns.wrapping_add(origin) & 7) {
            self.echo.put(b"\x08");
            self.echo.cursor.column = self.echo.cursor.column.saturating_sub(1);
        }
    }
}
