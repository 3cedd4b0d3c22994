//! Watching a process from files: what a signalfd and a pidfd sleep on.
//!
//! Few processes are ever watched so, and making one must stay cheap: the queues come into being with the first watcher.
//! Whoever sends a signal or ends a process looks for them without a lock; a watcher that comes at the same moment makes
//! its queue first and looks at the state after, so it misses nothing.

use super::process::Process;
use alloc::sync::Arc;
use sync::{Once, WaitQueue};

/// A process's queues for watchers.
#[derive(Debug, Default)]
pub struct Watchers {
    signals: Once<Arc<WaitQueue>>,
    end: Once<Arc<WaitQueue>>,
}

fn queue(of: &Once<Arc<WaitQueue>>) -> &Arc<WaitQueue> {
    loop {
        if let Some(q) = of.get() {
            return q;
        }
        // Lost to another thread: it is about to be there.
        let _ = of.set(Arc::new(WaitQueue::new()));
        core::hint::spin_loop();
    }
}

fn wake(of: &Once<Arc<WaitQueue>>) {
    // Pairs with the watcher's look after it made the queue.
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    if let Some(q) = of.get() {
        q.wake_all();
    }
}

impl Process {
    /// Woken when a signal begins to wait for the process or one of its threads. Context: thread.
    pub fn signal_queue(&self) -> &Arc<WaitQueue> {
        queue(&self.watchers.signals)
    }

    /// Woken when the process has ended. Context: thread.
    pub fn end_queue(&self) -> &Arc<WaitQueue> {
        queue(&self.watchers.end)
    }

    /// A signal began to wait. Context: any, with the signal lock held.
    pub(super) fn wake_signal_watchers(&self) {
        wake(&self.watchers.signals);
    }

    /// The process ended. Context: any.
    pub(super) fn wake_end_watchers(&self) {
        wake(&self.watchers.end);
    }

    /// Whether all its threads are gone (it is a zombie, or was collected).
    pub fn has_ended(&self) -> bool {
        let tree = super::tree::TREE.lock();
        self.links.get(&tree).is_zombie()
    }

    /// Whether it ended and was collected: nothing can be asked of it any more.
    pub fn is_collected(&self) -> bool {
        let tree = super::tree::TREE.lock();
        let links = self.links.get(&tree);
        links.is_zombie() && links.group.is_none()
    }
}
