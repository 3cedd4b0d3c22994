use crate::{LockClass, Mutex, RwLock, SpinLock, WaitQueue};
use platform::{ParkOptions, Wake};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

static A: LockClass = LockClass::new("a", 10);
static B: LockClass = LockClass::new("b", 20);

#[test]
fn contention_counts_exactly() {
    let m = Arc::new((Mutex::new(&A, 0u64), SpinLock::new(&B, 0u64)));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let m = m.clone();
            thread::spawn(move || {
                for _ in 0..20_000 {
                    *m.0.lock() += 1;
                    *m.1.lock() += 1;
                }
            })
        })
        .collect();
    for w in workers {
        w.join().unwrap();
    }
    assert_eq!((*m.0.lock(), *m.1.lock()), (80_000, 80_000));
}

#[test]
fn readers_and_writers_never_overlap() {
    let l = Arc::new(RwLock::new(&A, (0u64, 0u64)));
    let workers: Vec<_> = (0..4)
        .map(|i| {
            let l = l.clone();
            thread::spawn(move || {
                for n in 0..5_000 {
                    if (n + i) % 3 == 0 {
                        let mut g = l.write();
                        g.0 += 1;
                        g.1 += 1;
                    } else {
                        let g = l.read();
                        assert_eq!(g.0, g.1);
                    }
                }
            })
        })
        .collect();
    for w in workers {
        w.join().unwrap();
    }
    assert!(l.read().0 > 0);
}

#[test]
fn no_wake_up_is_lost() {
    let q = Arc::new((WaitQueue::new(), AtomicU32::new(0)));
    let q2 = q.clone();
    let ponger = thread::spawn(move || {
        for i in 0..20_000u32 {
            q2.0.wait_until(ParkOptions::default(), || (q2.1.load(Ordering::SeqCst) == 2 * i + 1).then_some(()))
                .unwrap();
            q2.1.store(2 * i + 2, Ordering::SeqCst);
            q2.0.wake();
        }
    });
    for i in 0..20_000u32 {
        q.1.store(2 * i + 1, Ordering::SeqCst);
        q.0.wake();
        q.0.wait_until(ParkOptions::default(), || (q.1.load(Ordering::SeqCst) == 2 * i + 2).then_some(())).unwrap();
    }
    ponger.join().unwrap();
}

#[test]
fn a_deadline_ends_a_wait() {
    let q = WaitQueue::new();
    let options = ParkOptions { deadline_ns: Some(platform::monotonic_ns() + 1_000_000), ..Default::default() };
    assert_eq!(q.wait_until(options, || None::<()>), Err(Wake::TimedOut));
    assert!(q.is_empty());
}

#[test]
#[cfg(debug_assertions)]
fn a_broken_order_is_reported() {
    let r = thread::spawn(|| {
        let (a, b) = (SpinLock::new(&A, ()), SpinLock::new(&B, ()));
        let _b = b.lock();
        let _a = a.lock();
    })
    .join();
    assert!(r.is_err());
}

struct Count(AtomicU32);
impl crate::Notify for Count {
    fn notify(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn watches_see_every_wake_up_until_dropped() {
    let queue = Arc::new(WaitQueue::new());
    let count = Arc::new(Count(AtomicU32::new(0)));
    let sleeper = {
        let queue = queue.clone();
        thread::spawn(move || {
            queue.wait_exclusive(ParkOptions { deadline_ns: None, interruptible: false }, {
                let mut looks = 0;
                move || {
                    looks += 1;
                    (looks > 1).then_some(())
                }
            })
        })
    };
    while queue.is_empty() {
        thread::yield_now();
    }
    // It comes after the exclusive sleeper, and is told all the same.
    let watch = crate::Watch::new(queue.clone(), count.clone());
    queue.wake();
    assert_eq!(sleeper.join().unwrap(), Ok(()));
    queue.wake_nested();
    queue.wake_all();
    assert_eq!(count.0.load(Ordering::Relaxed), 3);
    drop(watch);
    queue.wake_all();
    assert_eq!((count.0.load(Ordering::Relaxed), queue.is_empty()), (3, true));
}
