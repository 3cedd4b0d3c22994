//! Watching a queue from afar: what poll and epoll hold for each queue that they look at.

use super::{Notify, WaitNode, WaitQueue};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::pin::Pin;

struct Inner {
    node: WaitNode,
    queue: Arc<WaitQueue>,
    /// Keeps what the node points to alive.
    _notify: Arc<dyn Notify>,
}

/// Has a [`Notify`] told of every wake-up of a queue, until dropped. Once the drop returns, no call of
/// [`Notify::notify`] on its behalf runs or will run.
pub struct Watch(Pin<Box<Inner>>);

impl core::fmt::Debug for Watch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Watch")
    }
}

impl Watch {
    /// Watches `queue` from now on. Context: thread (it allocates).
    pub fn new(queue: Arc<WaitQueue>, notify: Arc<dyn Notify>) -> Self {
        // SAFETY: the node is unlinked before `_notify` is dropped (see `drop`).
        let node = unsafe { WaitNode::notifying(Arc::as_ptr(&notify)) };
        let inner = Box::pin(Inner { node, queue, _notify: notify });
        // SAFETY: the node is structurally pinned: it never leaves its box.
        let node = unsafe { inner.as_ref().map_unchecked(|i| &i.node) };
        // SAFETY: node and queue live in the box until `drop` has removed the node.
        unsafe { inner.queue.add(node) };
        Watch(inner)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: as in `new`.
        let node = unsafe { self.0.as_ref().map_unchecked(|i| &i.node) };
        self.0.queue.remove(node);
    }
}
