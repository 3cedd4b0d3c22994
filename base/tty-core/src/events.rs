//! What a step of the state machine asks of its caller.

bitflags::bitflags! {
    /// Things to do after a call, once the tty's lock is dropped. Several may be set at once.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Events: u32 {
        /// Send `SIGINT` to the foreground process group.
        const SIG_INT = 1;
        /// Send `SIGQUIT` to the foreground process group.
        const SIG_QUIT = 2;
        /// Send `SIGTSTP` to the foreground process group.
        const SIG_TSTP = 4;
        /// Input may have become readable, or its conditions changed: wake readers and pollers.
        const READABLE = 8;
        /// Output may have become possible: wake writers and pollers.
        const WRITABLE = 0x10;
        /// Output was stopped (`VSTOP`, `TCOOFF`): the device must not send more.
        const STOPPED = 0x20;
        /// Output was restarted: the device may send again.
        const STARTED = 0x40;
        /// Unread input was discarded.
        const INPUT_FLUSHED = 0x80;
        /// Output not yet sent was discarded ([`OutputSink::flush`](crate::OutputSink::flush) has been called).
        const OUTPUT_FLUSHED = 0x100;
        /// The terminal was hung up: `SIGHUP` and `SIGCONT` to the session, every open file fails from now on.
        const HANG_UP = 0x200;
        /// There is more room for input than before: a throttled device or pty master may go on.
        const INPUT_ROOM = 0x400;
        /// Packet mode has news for the pty's master: wake its readers.
        const MASTER_STATUS = 0x800;
    }
}
