//! Terminals without the machine: the line discipline and the state around it.
//!
//! A terminal sits between a *device side* (a UART, or the master of a pseudo-terminal) and a *program side* (the
//! processes that open the tty). Bytes from the device go through [`LineDiscipline::input`], which edits lines, echoes,
//! recognises signal and flow-control characters, and fills a bounded buffer; programs take from that buffer with
//! [`ReadRequest`]. Bytes from programs go through [`LineDiscipline::write`], which post-processes them (`OPOST`) into
//! an [`OutputSink`] that stands for the device.
//!
//! Nothing here sleeps, allocates (after construction), locks, or knows of processes: every method is a step of a state
//! machine and says in [`Events`] what the caller has to do (raise a signal, wake readers, restart the device). The
//! kernel keeps one value per tty under a spin lock with wait queues beside it; all methods are safe to call in atomic
//! context and take time linear in the bytes they are given.
//!
//! What a program sees follows Linux's `N_TTY` (termios(3), ioctl_tty(2)), checked against a real Linux pty by
//! `tests/linux_pty.rs`. Not done: `EXTPROC` (remote line editing for old telnet daemons; the bit is kept but has no
//! effect), `XCASE`, delays other than tab expansion (Linux has none either), and line disciplines other than `N_TTY`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod discipline;
mod edit;
mod events;
mod job;
mod output;
mod pty;
mod read;
mod receive;
mod ring;
mod speed;
mod termios;

pub use discipline::{FlowAction, FlushQueue, INPUT_CAPACITY, LineDiscipline};
pub use events::Events;
pub use job::{JobAction, JobContext, background_access};
pub use output::OutputSink;
pub use pty::{ExclusiveMode, PacketMode, PacketStatus, PtyOutput, Winsize};
pub use read::{ReadRequest, ReadStep};
pub use receive::{LineFault, Received};
pub use ring::Ring;
pub use termios::{
    ControlChar, ControlFlags, DISABLED, InputFlags, LocalFlags, NCCS, OutputFlags, TERMIO_SIZE, TERMIOS_SIZE,
    TERMIOS2_SIZE, Termios,
};
