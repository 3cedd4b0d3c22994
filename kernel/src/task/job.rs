//! Job control as terminals see it. Placeholder signatures until processes land.

use crate::tty::Tty;
use alloc::sync::Arc;

/// The calling process.
#[derive(Clone, Copy, Debug)]
pub struct Me {
    /// Process group.
    pub group: u32,
    /// Session.
    pub session: u32,
    /// Whether it leads the session.
    pub is_leader: bool,
}

/// The calling process.
pub fn current() -> Me {
    Me { group: 0, session: 0, is_leader: false }
}
/// Its session's terminal.
pub fn controlling_tty() -> Option<Arc<Tty>> {
    None
}
/// Sets its session's terminal.
pub fn set_controlling_tty(_tty: Option<Arc<Tty>>) {}
/// Signals a group.
pub fn signal_group(_group: u32, _signal: u32) {}
/// Signals a session's leader.
pub fn signal_leader(_session: u32, _signal: u32) {}
/// Whether the calling thread ignores or blocks a signal.
pub fn is_ignored_or_blocked(_signal: u32) -> bool {
    false
}
/// Whether a group is orphaned.
pub fn is_orphaned(_group: u32) -> bool {
    false
}
/// The session that a group belongs to.
pub fn session_of_group(_group: u32) -> Option<u32> {
    None
}
/// CAP_SYS_ADMIN.
pub fn is_privileged() -> bool {
    true
}
