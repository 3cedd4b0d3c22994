use super::{NewNode, ReadList, Retired, read_section};
use crate::LockClass;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

static CLASS: LockClass = LockClass::new("test list", 900);

/// Knows whether it was dropped.
struct Value {
    number: usize,
    live: AtomicBool,
}

static DROPS: AtomicUsize = AtomicUsize::new(0);

impl Drop for Value {
    fn drop(&mut self) {
        self.live.store(false, Ordering::SeqCst);
        DROPS.fetch_add(1, Ordering::SeqCst);
    }
}

fn value(number: usize) -> NewNode<Value> {
    NewNode::new(Value { number, live: AtomicBool::new(true) })
}

fn numbers(list: &ReadList<Value>) -> Vec<usize> {
    let section = read_section();
    list.iter(&section).map(|v| v.number).collect()
}

#[test]
fn what_is_linked_is_found_and_what_is_removed_is_dropped() {
    let list = ReadList::new(&CLASS);
    for n in 0..5 {
        list.write().push(value(n));
    }
    assert_eq!(numbers(&list), [4, 3, 2, 1, 0]);
    let mut gone = Retired::new();
    assert_eq!(list.write().remove(&mut gone, |v| v.number % 2 == 0), 3);
    assert_eq!(numbers(&list), [3, 1]);
    drop(gone);
    let mut gone = Retired::new();
    assert_eq!(list.write().remove(&mut gone, |v| v.number == 7), 0);
    assert_eq!(list.write().values().count(), 2);
}

#[test]
fn a_reader_never_sees_a_value_that_was_dropped() {
    let (list, stop) = (ReadList::<Value>::new(&CLASS), AtomicBool::new(false));
    let rounds = if cfg!(miri) { 50 } else { 20_000 };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let section = read_section();
                    for v in list.iter(&section) {
                        assert!(v.live.load(Ordering::Relaxed), "value {} was dropped", v.number);
                    }
                    drop(section);
                    std::thread::yield_now();
                }
            });
        }
        for n in 0..rounds {
            list.write().push(value(n));
            let mut gone = Retired::new();
            // Leaves a few, and takes them out of the middle.
            list.write().remove(&mut gone, |v| v.number + 3 <= n && v.number % 3 == n % 3);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let left = numbers(&list).len();
    assert!(left < rounds);
}
