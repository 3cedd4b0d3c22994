//! Waiting for several files at once: the engine under poll(2) and select(2).
//!
//! A first look at all files costs no registration. Only when nothing is ready and the caller may sleep does a
//! [`Watcher`] register with every queue that the files name; then each wake-up of any of them sets its flag and unparks
//! the thread, which looks again. The flag, not the scheduler's token, decides whether to sleep: looking at a file may
//! itself sleep on a lock and use the token up.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use platform::{ParkOptions, Waiter, Wake};
use sync::{Notify, WaitQueue, Watch};
use vfs::{OpenFile, PollEvents, Poller};

/// One file and what is asked of it.
#[derive(Debug)]
pub struct Request {
    /// The file; `None` is skipped.
    pub file: Option<Arc<OpenFile>>,
    /// What is asked for.
    pub events: PollEvents,
    /// Whether errors and hang-ups count only if they are among `events` (select), not always (poll).
    pub only_asked: bool,
    /// What was found; the caller may preset it (`POLLNVAL`).
    pub found: PollEvents,
}

struct Waker {
    thread: Waiter,
    fired: AtomicBool,
}

impl Notify for Waker {
    fn notify(&self) {
        if !self.fired.swap(true, Ordering::SeqCst) {
            self.thread.unpark();
        }
    }
}

/// The calling thread's registrations.
struct Watcher {
    waker: Arc<Waker>,
    watches: Vec<Watch>,
}

impl Poller for Watcher {
    fn register(&mut self, queue: &Arc<WaitQueue>) {
        self.watches.push(Watch::new(queue.clone(), self.waker.clone()));
    }
}

/// Looks at every file once; how many have something.
fn look(requests: &mut [Request], mut watcher: Option<&mut Watcher>) -> usize {
    let mut count = 0;
    for r in requests {
        if let Some(file) = &r.file {
            let now = file.poll(watcher.as_mut().map(|w| &mut **w as &mut dyn Poller));
            let always = if r.only_asked { PollEvents::NONE } else { PollEvents::ERR.and(PollEvents::HUP) };
            let wanted = r.events.and(always);
            r.found = PollEvents(now.0 & wanted.0);
        }
        count += usize::from(r.found != PollEvents::NONE);
    }
    count
}

/// Waits until a file has what is asked of it, or until `deadline_ns` (monotonic; 0: do not wait, `None`: for ever). The
/// number of files that have something; `Err` when a signal came first. Context: thread, may sleep.
pub fn wait(requests: &mut [Request], deadline_ns: Option<u64>) -> Result<usize, Wake> {
    let count = look(requests, None);
    if count > 0 || deadline_ns == Some(0) {
        return Ok(count);
    }
    let waker = Arc::new(Waker { thread: Waiter::current(), fired: AtomicBool::new(false) });
    let mut watcher = Watcher { waker: waker.clone(), watches: Vec::with_capacity(requests.len()) };
    let mut count = look(requests, Some(&mut watcher));
    let options = ParkOptions { interruptible: true, deadline_ns };
    while count == 0 {
        let why = if waker.fired.load(Ordering::SeqCst) { Wake::Unparked } else { platform::park(options) };
        waker.fired.store(false, Ordering::SeqCst);
        count = look(requests, None);
        if count == 0 {
            match why {
                Wake::Unparked => {}
                Wake::TimedOut => break,
                Wake::Interrupted => return Err(why),
            }
        }
    }
    Ok(count)
}
