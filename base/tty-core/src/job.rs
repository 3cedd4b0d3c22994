//! Job control: may this process touch its terminal now?
//!
//! POSIX "Terminal Access Control": a background process that reads (or writes with `TOSTOP`, or changes settings) is
//! stopped by `SIGTTIN` or `SIGTTOU`, unless stopping could never be undone.

use abi::Errno;

/// What the decision needs to know about the caller.
#[derive(Clone, Copy, Debug)]
pub struct JobContext {
    /// The terminal is the caller's controlling terminal.
    pub controlling: bool,
    /// The caller's process group is the terminal's foreground group, or there is none.
    pub foreground: bool,
    /// The caller blocks or ignores the signal in question.
    pub signal_ignored: bool,
    /// The caller's process group is orphaned: no parent in the session could continue it.
    pub orphaned: bool,
}

/// What to do about an access from the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobAction {
    /// Go on.
    Proceed,
    /// Send the signal to the caller's process group, then restart the call (`ERESTARTSYS`).
    Signal,
    /// Fail.
    Fail(Errno),
}

/// Decides for an access whose signal is `SIGTTIN` if `read`, else `SIGTTOU`.
pub fn background_access(read: bool, caller: JobContext) -> JobAction {
    if !caller.controlling || caller.foreground {
        JobAction::Proceed
    } else if caller.signal_ignored {
        if read { JobAction::Fail(Errno::EIO) } else { JobAction::Proceed }
    } else if caller.orphaned {
        JobAction::Fail(Errno::EIO)
    } else {
        JobAction::Signal
    }
}
