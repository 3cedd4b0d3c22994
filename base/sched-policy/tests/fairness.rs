//! Shares, latencies and real-time order on a pretend machine.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_precision_loss)]

mod common;
use common::*;
use sched_policy::*;

fn shares(cpus: usize, nices: &[i32], seconds: u64) -> Vec<f64> {
    let mut machine = Machine::new(cpus);
    let threads: Vec<Thread> = nices.iter().enumerate().map(|(id, &nice)| fair(id, nice)).collect();
    for (id, thread) in threads.iter().enumerate() {
        machine.arrive(id % cpus, thread.clone(), Arrival::New);
    }
    machine.run_until(seconds * 1000 * MS);
    threads.iter().map(|t| machine.exec_ns(t) as f64 / (seconds as f64 * 1e9)).collect()
}

#[test]
fn equal_spinners_get_equal_shares_on_any_number_of_cpus() {
    for (cpus, spinners) in [(1, 2), (1, 7), (1, 50), (2, 3), (2, 4), (4, 5), (4, 6), (4, 8), (4, 9), (8, 13)] {
        let got = shares(cpus, &vec![0; spinners], 5);
        let want = cpus as f64 / spinners as f64;
        for share in &got {
            assert!(
                (share / want - 1.0).abs() < 0.1,
                "{cpus} CPUs, {spinners} spinners: {share:.3} of {want:.3}: {got:.3?}"
            );
        }
    }
}

#[test]
fn fewer_spinners_than_cpus_each_have_one() {
    for share in shares(4, &[0, 0, 0], 1) {
        assert!(share > 0.999);
    }
}

#[test]
fn nice_values_weigh_as_the_table_says() {
    let got = shares(1, &[0, 5, -5, 19], 10);
    let weights = [1024.0, 335.0, 3121.0, 15.0];
    let sum: f64 = weights.iter().sum();
    for (share, weight) in got.iter().zip(weights) {
        assert!((share / (weight / sum) - 1.0).abs() < 0.1, "{got:?}");
    }
}

#[test]
fn an_idle_policy_thread_takes_almost_nothing_but_is_not_starved() {
    let mut machine = Machine::new(1);
    let spinner = fair(0, 0);
    let idler = thread(1, Policy::Idle, QosClass::Normal, CpuMask::ALL);
    machine.arrive(0, idler.clone(), Arrival::New);
    machine.arrive(0, spinner.clone(), Arrival::New);
    assert_eq!(machine.running[0].as_ref(), Some(&spinner), "preempted at once");
    machine.run_until(10_000 * MS);
    let share = machine.exec_ns(&idler) as f64 / 1e10;
    assert!(share > 0.001 && share < 0.01, "{share}");
}

/// A thread that sleeps most of the time is served within a slice among hogs, and gains nothing by sleeping.
#[test]
fn a_sleeper_is_served_soon_and_gets_no_more_than_its_share() {
    let mut machine = Machine::new(1);
    for id in 0..3 {
        machine.arrive(0, fair(id, 0), Arrival::New);
    }
    let sleeper = fair(9, 0);
    let mut worst = 0;
    machine.run_until(100 * MS);
    machine.arrive(0, sleeper.clone(), Arrival::Wakeup);
    for _ in 0..500 {
        let woken = machine.now;
        while machine.running[0].as_ref() != Some(&sleeper) {
            machine.step(machine.now + 100 * MS);
        }
        worst = worst.max(machine.now - woken);
        let done = machine.now + MS / 5;
        machine.run_until(done);
        while machine.running[0].as_ref() != Some(&sleeper) {
            machine.step(machine.now + MS);
        }
        assert_eq!(machine.block(0), sleeper);
        machine.run_until(machine.now + 5 * MS + 137_000);
        machine.arrive(0, sleeper.clone(), Arrival::Wakeup);
    }
    assert!(worst <= MS + MS / 10, "{worst} ns");
    let share = machine.exec_ns(&sleeper) as f64 / machine.now as f64;
    assert!(share < 0.25, "{share}");
}

#[test]
fn sleeping_does_not_wash_off_a_debt() {
    // One thread runs nearly its whole request and sleeps for a moment, over and over; the other just spins.
    let mut machine = Machine::new(1);
    let (cheat, honest) = (fair(0, 0), fair(1, 0));
    machine.arrive(0, cheat.clone(), Arrival::New);
    machine.arrive(0, honest.clone(), Arrival::New);
    while machine.now < 5000 * MS {
        let limit = machine.now + 2 * MS + MS / 2;
        machine.step(limit);
        if machine.running[0].as_ref() == Some(&cheat) {
            let task = machine.block(0);
            machine.now += 1000;
            machine.arrive(0, task, Arrival::Wakeup);
        }
    }
    let share = machine.exec_ns(&cheat) as f64 / machine.now as f64;
    assert!(share < 0.55, "{share}");
}

/// Two threads that wake each other and sleep all the time count as two against a hog, no more and no less.
#[test]
fn a_pair_that_wakes_each_other_does_not_starve_a_hog() {
    let mut machine = Machine::new(1);
    let hog = fair(9, 0);
    machine.arrive(0, hog.clone(), Arrival::New);
    machine.arrive(0, fair(0, 0), Arrival::New);
    let mut asleep = Some(fair(1, 0));
    while machine.now < 5000 * MS {
        let limit = machine.now + 20_000;
        machine.step(limit);
        if machine.running[0].as_ref() != Some(&hog) {
            machine.arrive(0, asleep.take().unwrap(), Arrival::Wakeup);
            if machine.running[0].as_ref() != Some(&hog) {
                asleep = Some(machine.block(0));
            }
        }
        assert!(asleep.is_some());
    }
    let share = machine.exec_ns(&hog) as f64 / machine.now as f64;
    assert!(share > 0.3 && share < 0.7, "{share}");
}

#[test]
fn yield_goes_to_the_other_thread_each_time() {
    let mut machine = Machine::new(1);
    machine.arrive(0, fair(0, 0), Arrival::New);
    machine.arrive(0, fair(1, 0), Arrival::New);
    for _ in 0..100 {
        let before = machine.running[0].clone();
        machine.now += 1000;
        machine.resched(0, GiveWay::Yielded);
        assert_ne!(machine.running[0], before);
    }
}

#[test]
fn a_lone_thread_needs_no_timer_and_a_second_one_sets_it() {
    let mut machine = Machine::new(1);
    machine.arrive(0, fair(0, 0), Arrival::New);
    assert_eq!(machine.timer[0], None);
    machine.now += 100;
    let kick = machine.queues[0].enqueue(fair(1, 0), Arrival::Wakeup, machine.now);
    assert_eq!(kick, Kick::SetTimer);
    assert!(machine.queues[0].time_slice_left().unwrap() <= 3 * MS);
}

#[test]
fn a_higher_class_preempts_when_it_wakes_and_a_lower_one_does_not() {
    let mut machine = Machine::new(1);
    machine.arrive(0, fair(0, 0), Arrival::New);
    machine.now += 10 * MS;
    let low = thread(1, Policy::Fair(Nice::ZERO), QosClass::Idle, CpuMask::ALL);
    assert_eq!(machine.queues[0].enqueue(low, Arrival::Wakeup, machine.now), Kick::SetTimer);
    let burst = thread(2, Policy::Fair(Nice::ZERO), QosClass::PerfBurst, CpuMask::ALL);
    machine.arrive(0, burst.clone(), Arrival::Wakeup);
    assert_eq!(machine.running[0].as_ref(), Some(&burst));
}

#[test]
fn fifo_keeps_its_place_at_the_head_when_preempted_and_loses_it_by_yielding() {
    let mut machine = Machine::new(1);
    let (a, b, high) = (fifo(0, 10), fifo(1, 10), fifo(2, 20));
    machine.arrive(0, a.clone(), Arrival::Wakeup);
    machine.arrive(0, b.clone(), Arrival::Wakeup);
    machine.run_until(300 * MS);
    assert_eq!(machine.running[0].as_ref(), Some(&a), "FIFO has no quantum");
    machine.arrive(0, high.clone(), Arrival::Wakeup);
    assert_eq!(machine.running[0].as_ref(), Some(&high));
    machine.block(0);
    assert_eq!(machine.running[0].as_ref(), Some(&a));
    machine.resched(0, GiveWay::Yielded);
    assert_eq!(machine.running[0].as_ref(), Some(&b));
    machine.resched(0, GiveWay::Preempted);
    assert_eq!(machine.running[0].as_ref(), Some(&b));
}

#[test]
fn round_robin_turns_every_quantum_and_keeps_the_rest_of_it_over_a_preemption() {
    let mut machine = Machine::new(1);
    let (a, b, high) = (rr(0, 10), rr(1, 10), fifo(2, 20));
    machine.arrive(0, a.clone(), Arrival::Wakeup);
    machine.arrive(0, b.clone(), Arrival::Wakeup);
    machine.run_until(60 * MS);
    machine.arrive(0, high, Arrival::Wakeup);
    machine.run_until(70 * MS);
    machine.block(0);
    assert_eq!(machine.running[0].as_ref(), Some(&a));
    machine.run_until(109 * MS);
    assert_eq!(machine.running[0].as_ref(), Some(&a));
    machine.run_until(111 * MS);
    assert_eq!(machine.running[0].as_ref(), Some(&b));
    machine.run_until(211 * MS);
    assert_eq!(machine.running[0].as_ref(), Some(&a));
}

#[test]
fn realtime_leaves_a_little_for_fair_threads() {
    let mut machine = Machine::new(1);
    let (hog, shell) = (fifo(0, 50), fair(1, 0));
    machine.arrive(0, hog.clone(), Arrival::Wakeup);
    machine.arrive(0, shell.clone(), Arrival::Wakeup);
    machine.run_until(10_000 * MS);
    let share = machine.exec_ns(&shell) as f64 / 1e10;
    assert!((share - 0.05).abs() < 0.01, "{share}");
}

#[test]
fn a_lowered_priority_goes_to_the_head_and_a_raised_one_to_the_tail() {
    let mut queue = queue(0);
    let (a, b, c) = (fifo(0, 10), fifo(1, 20), fifo(2, 5));
    for task in [&a, &b, &c] {
        let _ = queue.enqueue(task.clone(), Arrival::Wakeup, 0);
    }
    let ten = Policy::Fifo(RtPriority::new(10).unwrap());
    let _ = queue.set_params(&b, ten, QosClass::Normal, 0);
    let _ = queue.set_params(&c, ten, QosClass::Normal, 0);
    let _ = queue.set_params(&a, ten, QosClass::Normal, 0);
    let first = queue.next(0).unwrap();
    let second = queue.switch_away(&first, 1).unwrap();
    let third = queue.switch_away(&second, 2).unwrap();
    assert_eq!([first.0.id, second.0.id, third.0.id], [1, 0, 2]);
}

#[test]
fn a_running_thread_changes_class_and_back() {
    let mut machine = Machine::new(1);
    let (a, b) = (fair(0, 0), fair(1, 0));
    machine.arrive(0, a.clone(), Arrival::New);
    machine.arrive(0, b.clone(), Arrival::New);
    let now = machine.now;
    let kick = machine.queues[0].set_params(&a, Policy::Fifo(RtPriority::new(1).unwrap()), QosClass::Normal, now);
    machine.kick(0, kick);
    machine.run_until(500 * MS);
    assert_eq!(machine.exec_ns(&b), 0);
    let now = machine.now;
    let kick = machine.queues[0].set_params(&a, Policy::Fair(Nice::ZERO), QosClass::Normal, now);
    machine.kick(0, kick);
    machine.run_until(1500 * MS);
    let got = machine.exec_ns(&b) as f64 / 1e9;
    assert!((got - 0.5).abs() < 0.05, "{got}");
}

#[test]
fn victims_come_in_a_fixed_order() {
    let order: Vec<usize> = victim_order(cpu(2), &CpuMask::first(5)).map(CpuId::index).collect();
    assert_eq!(order, [3, 4, 0, 1]);
    assert_eq!(victim_order(cpu(0), &CpuMask::first(1)).count(), 0);
}
