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

/// An [`Action`] as it is kept: without padding, so that a table and its count fit half a page.
#[repr(C, packed(4))]
#[derive(Clone, Copy, Debug)]
struct Packed {
    handler: u64,
    restorer: u64,
    mask: u64,
    flags: u32,
}

/// By signal number minus one.
type Actions = [Packed; 64];

/// See the module.
#[derive(Debug)]
pub struct SignalState {
    /// `None`: all default. A child shares its parent's until either changes one.
    actions: Option<Arc<Actions>>,
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
            actions: None,
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
        SignalState { actions: self.actions.clone(), ..Self::new() }
    }

    /// What `signo` does.
    #[inline]
    pub fn action(&self, signo: u32) -> Action {
        self.actions.as_ref().map_or(Action::default(), |table| {
            let Packed { handler, restorer, mask, flags } = table[signo as usize - 1];
            Action { handler, flags: u64::from(flags), restorer, mask }
        })
    }

    /// Sets what `signo` does. Flags beyond 32 bits mean nothing and are forgotten.
    pub fn set_action(&mut self, signo: u32, a: Action) {
        let packed = Packed { handler: a.handler, restorer: a.restorer, mask: a.mask, flags: a.flags as u32 };
        if self.actions.is_some() || a != Action::default() {
            Arc::make_mut(self.actions.get_or_insert_with(all_default))[signo as usize - 1] = packed;
        }
    }

    /// Sets `signo` to its default, the rest of its action stays.
    pub fn set_default(&mut self, signo: u32) {
        self.set_action(signo, Action { handler: DEFAULT, ..self.action(signo) });
    }

    /// Whether `signo` is dropped when it comes: ignored, or ignored by default.
    pub fn ignores(&self, signo: u32) -> bool {
        match self.action(signo).handler {
            IGNORE => true,
            DEFAULT => super::default_of(signo) == super::DefaultAction::Ignore,
            _ => false,
        }
    }

    /// The signals that are ignored by request, and those with a handler, as masks.
    pub fn ignored_and_caught(&self) -> (u64, u64) {
        let mask = |want: fn(u64) -> bool| {
            (1..=super::SIGMAX).filter(|&n| want(self.action(n).handler)).fold(0, |m, n| m | super::bit(n))
        };
        (mask(|h| h == IGNORE), mask(|h| h != IGNORE && h != DEFAULT))
    }

    /// Takes the next signal for `t` and what to do on it; `SA_RESETHAND` takes effect.
    pub fn next_for(&mut self, t: &Thread) -> Option<(SigInfo, Action)> {
        let wanted = !t.blocked() | KERNEL_ONLY;
        let info = t.pending(self).take(wanted).or_else(|| self.shared.take(wanted))?;
        let action = self.action(info.signo);
        if action.handler > IGNORE && action.flags & SA_RESETHAND != 0 {
            self.set_default(info.signo);
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
        let old = self.actions.take();
        for (i, a) in old.iter().flat_map(|table| table.iter()).enumerate() {
            if a.handler == IGNORE {
                self.set_action(i as u32 + 1, Action { handler: IGNORE, ..Action::default() });
            }
        }
    }
}

#[cold]
#[inline(never)]
fn all_default() -> Arc<Actions> {
    Arc::new([Packed { handler: DEFAULT, restorer: 0, mask: 0, flags: 0 }; 64])
}

impl Action {
    /// What is blocked while the handler for `signo` runs, on top of what is blocked now.
    pub fn mask_during(&self, signo: u32) -> u64 {
        let own = if self.flags & SA_NODEFER == 0 { bit(signo) } else { 0 };
        (self.mask | own) & !KERNEL_ONLY
    }
}
