//! How long the steps take. Run with `cargo test --release -p sched-policy --test speed -- --ignored --nocapture`.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_precision_loss)]

mod common;
use common::*;
use sched_policy::*;
use std::hint::black_box;
use std::time::Instant;

fn time(name: &str, rounds: u64, mut step: impl FnMut(u64)) {
    (0..rounds / 10).for_each(&mut step);
    let start = Instant::now();
    (rounds / 10..rounds + rounds / 10).for_each(&mut step);
    println!("{name:44} {:6.1} ns", start.elapsed().as_nanos() as f64 / rounds as f64);
}

#[test]
#[ignore = "a measurement"]
fn steps() {
    const ROUNDS: u64 = 2_000_000;
    {
        // Two threads hand over to each other: one wakes the other and sleeps, as over a pipe.
        let mut queue = queue(0);
        let _ = queue.enqueue(fair(0, 0), Arrival::New, 0);
        let mut running = queue.next(0);
        let mut asleep = Some(fair(1, 0));
        time("wake + sleep + pick, two threads", ROUNDS, |i| {
            let now = i * 1000;
            if let (Some(a), Some(b)) = (running.take(), asleep.take()) {
                let _ = black_box(queue.enqueue(b, Arrival::Wakeup, now));
                running = queue.switch_away(&a, now + 300);
                asleep = Some(a);
            }
        });
    }
    {
        let mut queue = queue(0);
        let mut asleep = Some(fair(1, 0));
        time("wake on an idle CPU + pick + sleep", ROUNDS, |i| {
            let now = i * 1000;
            if let Some(task) = asleep.take() {
                let _ = black_box(queue.enqueue(task, Arrival::Wakeup, now));
                asleep = queue.next(now);
                if let Some(task) = &asleep {
                    assert!(queue.switch_away(task, now + 300).is_none());
                }
            }
        });
    }
    for n in [2usize, 4, 16, 64, 1000] {
        for why in [GiveWay::Yielded, GiveWay::Preempted] {
            let mut queue = queue(0);
            for id in 0..n {
                let _ = queue.enqueue(fair(id, 0), Arrival::New, 0);
            }
            let mut running = queue.next(0);
            time(&format!("{why:?}, {n} threads"), ROUNDS / 4, |i| {
                let step = if why == GiveWay::Yielded { 1000 } else { 3_000_000 };
                if let Some(task) = running.take() {
                    running = Some(queue.switch_runnable(task, why, i * step));
                }
            });
        }
    }
    {
        let mut queue = queue(0);
        for id in 0..4 {
            let _ = queue.enqueue(fifo(id, 10), Arrival::Wakeup, 0);
        }
        let mut running = queue.next(0);
        time("FIFO yield, 4 threads", ROUNDS, |i| {
            if let Some(task) = running.take() {
                running = Some(queue.switch_runnable(task, GiveWay::Yielded, i * 100));
            }
        });
    }
    println!("entity: {} bytes, queue: {} bytes", size_of::<Entity>(), size_of::<RunQueue<Thread>>());
}
