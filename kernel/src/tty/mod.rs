//! Terminals: the console and pseudo-terminals, as programs see them.
//!
//! The line discipline is the state machine of `tty-core`; this module gives it a lock, wait queues, a device, and job
//! control. Input that arrives in an interrupt goes first into a small ring ([`State::pending`]) and through the discipline
//! under the same lock; what the discipline then asks for ([`Events`]) is done after the lock is dropped.
//!
//! # Ownership and locking
//! [`Tty::state`] (an interrupt-safe spin lock, class `tty`) guards the discipline, window size, session and foreground
//! group, and for a pty both directions' queues. [`Tty::read_turn`] (sleeping) makes whole reads take turns. Wait queues
//! and signals are reached only with `state` released.
//!
//! # Contexts
//! `input` may be called from interrupts; everything that takes user data may sleep.

pub mod console;
pub mod ioctl;
pub mod pty;

use crate::task::job;
use abi::{Errno, Result};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use platform::{ParkOptions, ReadSink, SharedBytes, SharedBytesMut, Wake, WriteSource};
use sync::{IrqLock, LockClass, Mutex, WaitQueue};
use tty_core::{
    Events, ExclusiveMode, JobAction, JobContext, LineDiscipline, OutputSink, PacketMode, PtyOutput, ReadRequest,
    ReadStep, Ring, Termios, Winsize, background_access,
};

static STATE_CLASS: LockClass = LockClass::new("tty", sync::rank::OBJECT);
static READ_CLASS: LockClass = LockClass::new("tty read turn", sync::rank::INODE + 5);

const SIGHUP: u32 = 1;
const SIGINT: u32 = 2;
const SIGQUIT: u32 = 3;
const SIGCONT: u32 = 18;
const SIGTSTP: u32 = 20;
const SIGTTIN: u32 = 21;
const SIGTTOU: u32 = 22;
const SIGWINCH: u32 = 28;

/// Where output goes.
enum Device {
    /// The console UART, which takes everything at once.
    Console,
    /// A pty master's read queue.
    Pty(PtyOutput),
}

impl OutputSink for Device {
    fn room(&self) -> usize {
        match self {
            Device::Console => 4096,
            Device::Pty(q) => q.room(),
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        match self {
            Device::Console => crate::drivers::pl011::write_bytes(bytes),
            Device::Pty(q) => q.push(bytes),
        }
    }

    fn flush(&mut self) {
        if let Device::Pty(q) = self {
            q.flush();
        }
    }
}

/// What [`Tty::state`] guards.
pub struct State {
    discipline: Box<LineDiscipline>,
    device: Device,
    /// Input that the discipline had no room for yet.
    pending: Ring,
    /// Window size.
    pub winsize: Winsize,
    /// Session leader's pid, or 0.
    pub session: u32,
    /// Foreground process group, or 0.
    pub foreground: u32,
    exclusive: ExclusiveMode,
    packet: PacketMode,
    /// A pty whose other end is gone, or a terminal that was hung up.
    closed: bool,
}

/// A terminal.
pub struct Tty {
    /// Its number: of the pty, or 0 for the console.
    pub index: u32,
    state: IrqLock<State>,
    read_turn: Mutex<()>,
    /// Readers, writers and pollers of the program side.
    pub waiters: Arc<WaitQueue>,
    /// Readers, writers and pollers of a pty's master.
    pub master_waiters: Arc<WaitQueue>,
    /// Open program sides of a pty.
    slaves: AtomicUsize,
    /// Whether a program side was ever open.
    had_slave: AtomicBool,
    /// TIOCSPTLCK: the slave cannot be opened yet.
    locked: AtomicBool,
    is_pty: bool,
}

impl core::fmt::Debug for Tty {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Tty").field("index", &self.index).field("pty", &self.is_pty).finish_non_exhaustive()
    }
}

/// What poll sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// A read would not block.
    pub readable: bool,
    /// A write would not block.
    pub writable: bool,
    /// The other end is gone.
    pub hung_up: bool,
    /// Packet-mode news.
    pub priority: bool,
}

impl Tty {
    fn new(index: u32, device: Device, termios: Termios, is_pty: bool) -> Result<Self> {
        Ok(Tty {
            index,
            state: IrqLock::new(
                &STATE_CLASS,
                State {
                    discipline: Box::new(LineDiscipline::new(termios)?),
                    device,
                    pending: Ring::new(4096)?,
                    winsize: Winsize::default(),
                    session: 0,
                    foreground: 0,
                    exclusive: ExclusiveMode::default(),
                    packet: PacketMode::default(),
                    closed: false,
                },
            ),
            read_turn: Mutex::new(&READ_CLASS, ()),
            waiters: Arc::new(WaitQueue::new()),
            master_waiters: Arc::new(WaitQueue::new()),
            slaves: AtomicUsize::new(0),
            had_slave: AtomicBool::new(false),
            locked: AtomicBool::new(is_pty),
            is_pty,
        })
    }

    /// Whether it is a pseudo-terminal.
    pub fn is_pty(&self) -> bool {
        self.is_pty
    }

    /// Runs `f` on the discipline and does what it asks for.
    fn with<R>(&self, f: impl FnOnce(&mut State) -> (R, Events)) -> R {
        let (r, events, foreground, session) = {
            let mut s = self.state.lock();
            let (r, mut events) = f(&mut s);
            let State { discipline, packet, .. } = &mut *s;
            events |= packet.note(events, discipline);
            (r, events, s.foreground, s.session)
        };
        self.act(events, foreground, session);
        r
    }

    /// Does what the discipline asked for. No lock is held.
    fn act(&self, events: Events, foreground: u32, session: u32) {
        for (event, signal) in [(Events::SIG_INT, SIGINT), (Events::SIG_QUIT, SIGQUIT), (Events::SIG_TSTP, SIGTSTP)] {
            if events.contains(event) && foreground != 0 {
                job::signal_group(foreground, signal);
            }
        }
        if events.contains(Events::HANG_UP) && session != 0 {
            job::signal_leader(session, SIGHUP);
            job::signal_leader(session, SIGCONT);
        }
        if events.intersects(Events::READABLE | Events::WRITABLE | Events::HANG_UP) {
            self.waiters.wake();
        }
        if self.is_pty {
            self.master_waiters.wake();
        }
    }

    /// Input from the device side. Bytes that find no room anywhere are lost (console) or left to the caller (pty).
    /// Returns how many were taken. Any context.
    pub fn input(&self, bytes: &[u8]) -> usize {
        self.with(|s| {
            let State { discipline, device, pending, .. } = s;
            let mut events = Events::empty();
            let mut taken = 0;
            if pending.is_empty() {
                let r = discipline.input(bytes, device);
                taken = r.taken;
                events = r.events;
            }
            taken += pending.push(&bytes[taken..]);
            (taken, events)
        })
    }

    /// Feeds input that had to wait for room.
    fn feed_pending(&self) {
        self.with(|s| {
            let State { discipline, device, pending, .. } = s;
            let mut events = Events::empty();
            while !pending.is_empty() {
                let r = discipline.input(pending.front(), device);
                events |= r.events;
                pending.consume(r.taken);
                if r.taken == 0 {
                    break;
                }
            }
            ((), events)
        });
    }

    /// Job control for the calling process: may it read (or write, or change settings) now?
    fn check_job(self: &Arc<Self>, read: bool) -> Result<()> {
        let foreground = self.state.lock().foreground;
        let me = job::current();
        let signal = if read { SIGTTIN } else { SIGTTOU };
        let controlling = job::controlling_tty().is_some_and(|t| Arc::ptr_eq(&t, self));
        if !controlling || foreground == 0 || foreground == me.group {
            return Ok(());
        }
        let context = JobContext {
            controlling,
            foreground: false,
            signal_ignored: job::is_ignored_or_blocked(signal),
            orphaned: job::is_orphaned(me.group),
        };
        match background_access(read, context) {
            JobAction::Proceed => Ok(()),
            JobAction::Fail(e) => Err(e),
            JobAction::Signal => {
                job::signal_group(me.group, signal);
                Err(Errno::ERESTARTSYS)
            }
        }
    }

    /// A program's read. May sleep. `EAGAIN`, `EIO` (background), `ERESTARTSYS`.
    pub fn read(self: &Arc<Self>, sink: &mut dyn ReadSink, nonblock: bool) -> Result<usize> {
        self.check_job(true)?;
        let _turn = self.read_turn.lock();
        let mut request = ReadRequest::new(&self.state.lock().discipline, sink.remaining(), platform::monotonic_ns());
        let mut delivered = 0;
        let mut chunk = [0u8; 256];
        loop {
            let (step, closed) = {
                let mut s = self.state.lock();
                let step = request.step(&mut s.discipline, &mut chunk, platform::monotonic_ns());
                (step, s.closed)
            };
            match step {
                ReadStep::Copied(n) => {
                    self.feed_pending();
                    let put = sink.put(SharedBytes::from(&chunk[..n])).map_err(|_| Errno::EFAULT)?;
                    delivered += put;
                    if put < n {
                        break;
                    }
                }
                ReadStep::Done => break,
                // Hung up: end of file, as on Linux.
                ReadStep::Wait { .. } if closed => return Ok(delivered),
                ReadStep::Wait { .. } if nonblock => {
                    return if delivered > 0 { Ok(delivered) } else { Err(Errno::EAGAIN) };
                }
                ReadStep::Wait { deadline } => {
                    let options = ParkOptions { interruptible: true, deadline_ns: deadline };
                    let ready = || {
                        let s = self.state.lock();
                        (s.discipline.input_available() || s.closed).then_some(())
                    };
                    if self.waiters.wait_until(options, ready) == Err(Wake::Interrupted) {
                        return if delivered > 0 { Ok(delivered) } else { Err(Errno::ERESTARTSYS) };
                    }
                }
            }
        }
        Ok(delivered)
    }

    /// A program's write. May sleep. `EAGAIN`, `EIO` (hung up), `ERESTARTSYS`.
    pub fn write(self: &Arc<Self>, source: &mut dyn WriteSource, nonblock: bool) -> Result<usize> {
        let tostop = self.state.lock().discipline.termios().lflag.contains(tty_core::LocalFlags::TOSTOP);
        if tostop {
            self.check_job(false)?;
        }
        let mut written = 0;
        let mut chunk = [0u8; 256];
        loop {
            let n = source.get(SharedBytesMut::from(&mut chunk[..])).map_err(|_| Errno::EFAULT)?;
            if n == 0 {
                return Ok(written);
            }
            let mut at = 0;
            while at < n {
                let (taken, closed) = self.with(|s| {
                    let State { discipline, device, closed, .. } = s;
                    ((if *closed { 0 } else { discipline.write(&chunk[at..n], device) }, *closed), Events::empty())
                });
                at += taken;
                written += taken;
                if closed {
                    return if written > 0 { Ok(written) } else { Err(Errno::EIO) };
                }
                if taken > 0 {
                    continue;
                }
                if nonblock {
                    return if written > 0 { Ok(written) } else { Err(Errno::EAGAIN) };
                }
                let options = ParkOptions { interruptible: true, deadline_ns: None };
                let ready = || {
                    let s = self.state.lock();
                    (s.discipline.writable(&s.device) || s.closed).then_some(())
                };
                if self.waiters.wait_until(options, ready).is_err() {
                    return if written > 0 { Ok(written) } else { Err(Errno::ERESTARTSYS) };
                }
            }
        }
    }

    /// What poll sees on the program side.
    pub fn readiness(&self) -> Readiness {
        let s = self.state.lock();
        Readiness {
            readable: s.discipline.poll_readable() || s.closed,
            writable: s.discipline.writable(&s.device) || s.closed,
            hung_up: s.closed,
            priority: false,
        }
    }

    /// Becomes the calling session leader's controlling terminal if that has none and this has no session (open without
    /// O_NOCTTY).
    pub fn adopt_if_free(self: &Arc<Self>) {
        let me = job::current();
        if me.is_leader && job::controlling_tty().is_none() {
            let mut s = self.state.lock();
            if s.session == 0 {
                s.session = me.session;
                s.foreground = me.group;
                drop(s);
                job::set_controlling_tty(Some(self.clone()));
            }
        }
    }

    /// The session that it controls ends: everyone in the foreground gets SIGHUP and SIGCONT.
    pub fn session_ended(&self, session: u32) {
        let foreground = {
            let mut s = self.state.lock();
            if s.session != session {
                return;
            }
            s.session = 0;
            core::mem::take(&mut s.foreground)
        };
        if foreground != 0 {
            job::signal_group(foreground, SIGHUP);
            job::signal_group(foreground, SIGCONT);
        }
    }

    /// The device side is gone.
    fn hang_up(&self) {
        self.with(|s| {
            let State { discipline, device, closed, pending, .. } = s;
            *closed = true;
            pending.clear();
            let fresh = *discipline.termios();
            ((), discipline.hang_up(fresh, device))
        });
    }

    /// The foreground process group, or 0.
    pub fn foreground_group(&self) -> u32 {
        self.state.lock().foreground
    }

    /// A program side was opened.
    pub fn opened(&self) {
        self.slaves.fetch_add(1, Ordering::AcqRel);
        self.had_slave.store(true, Ordering::Release);
    }

    /// A program side was closed: the last one ends a master's reads.
    pub fn closed(&self) {
        if self.slaves.fetch_sub(1, Ordering::AcqRel) == 1 && self.is_pty {
            self.master_waiters.wake_all();
        }
    }

    /// Whether a master should go on waiting for a program side.
    pub fn has_slave(&self) -> bool {
        self.slaves.load(Ordering::Acquire) > 0 || !self.had_slave.load(Ordering::Acquire)
    }

    fn locked(&self) -> bool {
        self.locked.load(Ordering::Relaxed)
    }
}
