//! Whatever happens, in whatever order: no thread is lost, none is in two places.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_precision_loss)]

mod common;
use common::*;
use proptest::prelude::*;
use sched_policy::*;
use std::collections::HashSet;

const CPUS: usize = 4;
const THREADS: usize = 24;

#[derive(Clone, Debug)]
enum Op {
    Wake { cpu: usize },
    New { cpu: usize, policy: u8, qos: u8, pinned: bool },
    Block { cpu: usize },
    Yield { cpu: usize },
    Resched { cpu: usize },
    Steal { thief: usize, victim: usize, max_qos: u8 },
    Balance { from: usize, to: usize },
    SetParams { thread: usize, policy: u8, qos: u8 },
    Detach { thread: usize },
    Pass { ns: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let cpus = 0..CPUS;
    prop_oneof![
        3 => cpus.clone().prop_map(|cpu| Op::Wake { cpu }),
        3 => (cpus.clone(), any::<u8>(), 0..4u8, prop::bool::weighted(0.2))
            .prop_map(|(cpu, policy, qos, pinned)| Op::New { cpu, policy, qos, pinned }),
        2 => cpus.clone().prop_map(|cpu| Op::Block { cpu }),
        1 => cpus.clone().prop_map(|cpu| Op::Yield { cpu }),
        2 => cpus.clone().prop_map(|cpu| Op::Resched { cpu }),
        2 => (cpus.clone(), cpus.clone(), 0..4u8)
            .prop_map(|(thief, victim, max_qos)| Op::Steal { thief, victim, max_qos }),
        2 => (cpus.clone(), cpus).prop_map(|(from, to)| Op::Balance { from, to }),
        1 => (0..THREADS, any::<u8>(), 0..4u8)
            .prop_map(|(thread, policy, qos)| Op::SetParams { thread, policy, qos }),
        1 => (0..THREADS).prop_map(|thread| Op::Detach { thread }),
        3 => prop_oneof![1..5_000_000u64, 1..2_000_000_000u64].prop_map(|ns| Op::Pass { ns }),
    ]
}

fn policy(raw: u8) -> Policy {
    let nice = Nice::clamped(i32::from(raw % 40) - 20);
    let prio = RtPriority::new(i32::from(raw % 3) + 1).unwrap();
    match raw / 52 {
        0 | 1 => Policy::Fair(nice),
        2 => Policy::Batch(nice),
        3 => Policy::Idle,
        _ if raw.is_multiple_of(2) => Policy::Fifo(prio),
        _ => Policy::Rr(prio),
    }
}

struct World {
    machine: Machine,
    threads: Vec<Thread>,
    off: Vec<Thread>,
}

impl World {
    fn apply(&mut self, op: Op) {
        let machine = &mut self.machine;
        match op {
            Op::Wake { cpu: n } => {
                let fit = self.off.iter().position(|t| t.entity().allows(cpu(n)));
                if let Some(index) = fit {
                    machine.arrive(n, self.off.remove(index), Arrival::Wakeup);
                }
            }
            Op::New { cpu: n, policy: p, qos, pinned } => {
                if self.threads.len() < THREADS {
                    let mask = if pinned { CpuMask::one(cpu(n)) } else { CpuMask::ALL };
                    let qos = QosClass::new(u64::from(qos)).unwrap();
                    let task = thread(self.threads.len(), policy(p), qos, mask);
                    self.threads.push(task.clone());
                    machine.arrive(n, task, Arrival::New);
                }
            }
            Op::Block { cpu } => {
                if machine.running[cpu].is_some() {
                    self.off.push(machine.block(cpu));
                }
            }
            Op::Yield { cpu } => machine.resched(cpu, GiveWay::Yielded),
            Op::Resched { cpu } => machine.resched(cpu, GiveWay::Preempted),
            Op::Steal { thief, victim, max_qos } => {
                if thief != victim {
                    let max = QosClass::new(u64::from(max_qos)).unwrap();
                    let request = StealRequest::one(&machine.queues[thief], max);
                    let before = machine.queues[victim].queued();
                    let stolen = machine.queues[victim].steal(&request, machine.now);
                    let after = machine.queues[victim].queued();
                    match stolen {
                        Ok(task) => {
                            assert_eq!(after + 1, before);
                            assert!(task.entity().qos() <= max && task.entity().allows(cpu(thief)));
                            machine.arrive(thief, task, Arrival::Migrated);
                        }
                        Err(_) => assert_eq!(after, before),
                    }
                }
            }
            Op::Balance { from, to } => {
                if from != to {
                    let now = machine.now;
                    let (a, b) = machine.two(from, to);
                    if let Some(kick) = balance(a, b, now) {
                        machine.kick(to, kick);
                    }
                }
            }
            Op::SetParams { thread, policy: p, qos } => {
                if let Some(task) = self.threads.get(thread).cloned() {
                    let n = task.entity().cpu().index();
                    let qos = QosClass::new(u64::from(qos)).unwrap();
                    let kick = machine.queues[n].set_params(&task, policy(p), qos, machine.now);
                    assert_eq!((task.entity().policy(), task.entity().qos()), (policy(p), qos));
                    machine.kick(n, kick);
                }
            }
            Op::Detach { thread } => {
                if let Some(task) = self.threads.get(thread).cloned() {
                    let n = task.entity().cpu().index();
                    let queued = task.entity().state() == RunState::Queued;
                    let got = machine.queues[n].detach(&task, machine.now);
                    assert_eq!(got.is_some(), queued);
                    self.off.extend(got);
                }
            }
            Op::Pass { ns } => machine.now += ns,
        }
    }

    fn check(&self) {
        let mut seen = HashSet::new();
        for (n, queue) in self.machine.queues.iter().enumerate() {
            let mut weight = 0;
            queue.for_each_queued(|task| {
                assert!(seen.insert(task.0.id), "in two places");
                assert_eq!((task.entity().state(), task.entity().cpu()), (RunState::Queued, cpu(n)));
                assert!(task.entity().allows(cpu(n)));
                if !task.entity().policy().is_realtime() {
                    weight += i64::from(task.entity().policy().weight());
                }
            });
            if let Some(task) = &self.machine.running[n] {
                assert!(seen.insert(task.0.id), "in two places");
                assert_eq!((task.entity().state(), task.entity().cpu()), (RunState::Running, cpu(n)));
                if !task.entity().policy().is_realtime() {
                    weight += i64::from(task.entity().policy().weight());
                }
            } else {
                assert_eq!(queue.queued(), 0, "an idle CPU with work");
            }
            assert_eq!(queue.fair_load(), weight);
            assert_eq!(queue.runnable(), queue.queued() + usize::from(self.machine.running[n].is_some()));
        }
        for task in &self.off {
            assert!(seen.insert(task.0.id), "in two places");
            assert_eq!(task.entity().state(), RunState::Off);
        }
        assert_eq!(seen.len(), self.threads.len(), "lost");
    }

    /// Everybody who is runnable gets to run once real-time threads are out of the way.
    fn drain(&mut self) {
        for n in 0..CPUS {
            let mut left = self.machine.queues[n].runnable();
            while self.machine.running[n].is_some() {
                self.off.push(self.machine.block(n));
                left -= 1;
            }
            assert_eq!(left, 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_thread_is_lost_or_doubled(ops in prop::collection::vec(op(), 1..300)) {
        let mut world = World { machine: Machine::new(CPUS), threads: Vec::new(), off: Vec::new() };
        for op in ops {
            world.apply(op);
            world.check();
        }
        world.drain();
        world.check();
    }

    /// The one that the queue picks is the one that an exact reading of the rule picks.
    #[test]
    fn the_pick_is_the_eligible_thread_with_the_earliest_deadline(
        runs in prop::collection::vec((0..40i32, 1..20_000_000u64), 2..30),
    ) {
        let mut queue = queue(0);
        for (id, (nice, _)) in runs.iter().enumerate() {
            let _ = queue.enqueue(fair(id, nice - 20), Arrival::New, 0);
        }
        let mut now = 0;
        let mut running = queue.next(now).unwrap();
        let mut ran = vec![0u64; runs.len()];
        for (_, ns) in runs.iter().cycle().take(200) {
            now += ns;
            ran[running.0.id] += ns;
            running = queue.switch_runnable(running, GiveWay::Preempted, now);
        }
        // All are still there, and nobody has more than its share by over two of the longest runs.
        prop_assert_eq!(queue.queued() + 1, runs.len());
        let weights: Vec<f64> = runs.iter().map(|r| f64::from(Policy::Fair(Nice::clamped(r.0 - 20)).weight())).collect();
        let total: f64 = weights.iter().sum();
        for (id, ns) in ran.iter().enumerate() {
            let share = now as f64 * weights[id] / total;
            prop_assert!(*ns as f64 - share < 46e6, "{} has {} of {}", id, ns, share);
        }
    }
}
