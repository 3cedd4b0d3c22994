//! A process's signal state: what its signal lock guards.

use super::info::SigInfo;
use super::pending::Pending;
use super::{KERNEL_ONLY, SA_NODEFER, SA_RESETHAND, bit};
use crate::task::thread::Thread;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// `SIG_DFL`.
pub const DEFAULT: u64 = 0;
/// `SIG_IGN`.
pub const IGNORE: u64 = 1;

/// What happens on a signal: the kernel's `struct sigaction` of AArch64.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
pub struct Action {
    /// A user address, or one of the constants above.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Where a handler returns to, with `SA_RESTORER`.
    pub restorer: u64,
    /// Blocked while the handler runs.
    pub mask: u64,
}

/// Why a process's threads are leaving.
#[derive(Clone, Copy, Debug)]
pub enum Ending {
    /// The whole process exits with this wait status.
    Exit(i32),
    /// Another thread runs exec; it is this one (an address that is only compared).
    Exec(usize),
}

/// See the module.
#[derive(Debug)]
pub struct SignalState {
    /// By signal number minus one.
    pub actions: [Action; 64],
    /// Signals for whichever thread takes them.
    pub shared: Pending,
    /// The threads that have not exited, the oldest first.
    pub threads: Vec<Arc<Thread>>,
    /// Set once threads must go.
    pub ending: Option<Ending>,
    /// The process is stopped, or stopping, by this signal.
    pub stopped: Option<u32>,
    /// How many threads have come to rest in the stop.
    pub at_rest: usize,
    /// Its parent has been told of the stop.
    pub stop_told: bool,
}

impl SignalState {
    /// As of a process that never ran.
    pub fn new() -> Self {
        SignalState {
            actions: [Action { handler: DEFAULT, flags: 0, restorer: 0, mask: 0 }; 64],
            shared: Pending::new(),
            threads: Vec::new(),
            ending: None,
            stopped: None,
            at_rest: 0,
            stop_told: false,
        }
    }

    /// As of a forked child: the same actions, nothing pending.
    pub fn inherit(&self) -> Self {
        SignalState { actions: self.actions, ..Self::new() }
    }

    /// What `signo` does.
    #[inline]
    pub fn action(&self, signo: u32) -> Action {
        self.actions[signo as usize - 1]
    }

    /// Whether `signo` is dropped when it comes: ignored, or ignored by default.
    pub fn ignores(&self, signo: u32) -> bool {
        match self.action(signo).handler {
            IGNORE => true,
            DEFAULT => super::default_of(signo) == super::DefaultAction::Ignore,
            _ => false,
        }
    }

    /// Takes the next signal for `t` and what to do on it; `SA_RESETHAND` takes effect.
    pub fn next_for(&mut self, t: &Thread) -> Option<(SigInfo, Action)> {
        let wanted = !t.blocked() | KERNEL_ONLY;
        let info = t.pending(self).take(wanted).or_else(|| self.shared.take(wanted))?;
        let slot = &mut self.actions[info.signo as usize - 1];
        let action = *slot;
        if action.handler > IGNORE && action.flags & SA_RESETHAND != 0 {
            slot.handler = DEFAULT;
        }
        Some((info, action))
    }

    /// Whether `t` has something to do before it may go on.
    pub fn has_work_for(&mut self, t: &Thread) -> bool {
        let waiting = t.pending(self).set() | self.shared.set();
        waiting & (!t.blocked() | KERNEL_ONLY) != 0
            || self.stopped.is_some()
            || match self.ending {
                None => false,
                Some(Ending::Exit(_)) => true,
                Some(Ending::Exec(by)) => by != core::ptr::from_ref(t) as usize,
            }
    }

    /// Handlers do not survive exec; what is ignored stays ignored.
    pub fn reset_for_exec(&mut self) {
        for a in &mut self.actions {
            if a.handler != IGNORE {
                a.handler = DEFAULT;
            }
            *a = Action { handler: a.handler, flags: 0, restorer: 0, mask: 0 };
        }
    }
}

impl Action {
    /// What is blocked while the handler for `signo` runs, on top of what is blocked now.
    pub fn mask_during(&self, signo: u32) -> u64 {
        let own = if self.flags & SA_NODEFER == 0 { bit(signo) } else { 0 };
        (self.mask | own) & !KERNEL_ONLY
    }
}
