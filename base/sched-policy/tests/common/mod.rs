//! A pretend thread and a pretend machine.
#![allow(dead_code, missing_docs)]

use sched_policy::*;
use std::collections::HashSet;
use std::rc::Rc;

pub const MS: u64 = 1_000_000;

#[derive(Clone, Debug)]
pub struct Thread(pub Rc<Inner>);

#[derive(Debug)]
pub struct Inner {
    pub id: usize,
    entity: Entity,
}

impl Task for Thread {
    fn entity(&self) -> &Entity {
        &self.0.entity
    }
}

impl PartialEq for Thread {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

pub fn cpu(n: usize) -> CpuId {
    CpuId::new(n).unwrap()
}

pub fn thread(id: usize, policy: Policy, qos: QosClass, affinity: CpuMask) -> Thread {
    Thread(Rc::new(Inner { id, entity: Entity::new(policy, qos, affinity, CpuId::BOOT) }))
}

pub fn fair(id: usize, nice: i32) -> Thread {
    thread(id, Policy::Fair(Nice::new(nice).unwrap()), QosClass::Normal, CpuMask::ALL)
}

pub fn fifo(id: usize, prio: i32) -> Thread {
    thread(id, Policy::Fifo(RtPriority::new(prio).unwrap()), QosClass::Normal, CpuMask::ALL)
}

pub fn rr(id: usize, prio: i32) -> Thread {
    thread(id, Policy::Rr(RtPriority::new(prio).unwrap()), QosClass::Normal, CpuMask::ALL)
}

pub fn queue(n: usize) -> RunQueue<Thread> {
    let mut queue = RunQueue::new(cpu(n));
    drop(queue.grow(Storage::new(1024).unwrap()));
    queue
}

pub fn ids(queue: &RunQueue<Thread>) -> HashSet<usize> {
    let mut ids = HashSet::new();
    queue.for_each_queued(|task| assert!(ids.insert(task.0.id), "queued twice"));
    ids
}

/// CPUs with the kernel's part of the scheduler, reduced to what the policy needs.
pub struct Machine {
    pub queues: Vec<RunQueue<Thread>>,
    pub running: Vec<Option<Thread>>,
    pub timer: Vec<Option<u64>>,
    pub now: u64,
    pub balance_at: Vec<u64>,
}

impl Machine {
    pub fn new(cpus: usize) -> Self {
        Self {
            queues: (0..cpus).map(queue).collect(),
            running: vec![None; cpus],
            timer: vec![None; cpus],
            now: 0,
            balance_at: vec![0; cpus],
        }
    }

    pub fn set_timer(&mut self, n: usize) {
        self.timer[n] = self.queues[n].time_slice_left().map(|ns| self.now + ns);
    }

    pub fn kick(&mut self, n: usize, kick: Kick) {
        match kick {
            Kick::Nothing => {}
            Kick::SetTimer => self.set_timer(n),
            Kick::Resched => self.resched(n, GiveWay::Preempted),
        }
    }

    pub fn resched(&mut self, n: usize, why: GiveWay) {
        self.running[n] = match self.running[n].take() {
            Some(task) => Some(self.queues[n].switch_runnable(task, why, self.now)),
            None => self.queues[n].next(self.now),
        };
        self.set_timer(n);
    }

    pub fn arrive(&mut self, n: usize, task: Thread, arrival: Arrival) {
        let kick = self.queues[n].enqueue(task, arrival, self.now);
        self.kick(n, kick);
    }

    pub fn block(&mut self, n: usize) -> Thread {
        let task = self.running[n].take().unwrap();
        self.running[n] = self.queues[n].switch_away(&task, self.now);
        self.set_timer(n);
        task
    }

    pub fn two(&mut self, a: usize, b: usize) -> (&mut RunQueue<Thread>, &mut RunQueue<Thread>) {
        let [a, b] = self.queues.get_disjoint_mut([a, b]).unwrap();
        (a, b)
    }

    pub fn idle_steal(&mut self, n: usize) {
        if self.running[n].is_some() || self.queues[n].queued() != 0 {
            return;
        }
        for victim in victim_order(cpu(n), &CpuMask::first(self.queues.len())) {
            let request = StealRequest::one(&self.queues[n], QosClass::PerfBurst);
            if let Ok(task) = self.queues[victim.index()].steal(&request, self.now) {
                self.arrive(n, task, Arrival::Migrated);
                return;
            }
        }
    }

    pub fn balance(&mut self, n: usize) {
        if self.now < self.balance_at[n] {
            return;
        }
        self.balance_at[n] = self.now + 20 * MS;
        for target in victim_order(cpu(n), &CpuMask::first(self.queues.len())) {
            let now = self.now;
            let (from, to) = self.two(n, target.index());
            if let Some(kick) = balance(from, to, now) {
                self.kick(target.index(), kick);
                return;
            }
        }
    }

    /// Lets time pass to the next slice timer or to `limit`.
    pub fn step(&mut self, limit: u64) {
        let next = self.timer.iter().flatten().copied().min().unwrap_or(limit).min(limit);
        self.now = next.max(self.now);
        for n in 0..self.queues.len() {
            if self.timer[n].is_some_and(|at| at <= self.now) {
                self.timer[n] = None;
                if self.queues[n].charge(self.now) {
                    self.balance(n);
                    self.resched(n, GiveWay::Preempted);
                } else {
                    self.set_timer(n);
                }
            }
            self.idle_steal(n);
        }
    }

    pub fn run_until(&mut self, limit: u64) {
        while self.now < limit {
            self.step(limit);
        }
    }

    pub fn exec_ns(&mut self, task: &Thread) -> u64 {
        let now = self.now;
        let n = task.entity().cpu().index();
        self.queues[n].charge(now);
        let running = self.running[n].as_ref() == Some(task);
        task.entity().exec_ns() + if running { self.queues[n].current_exec_ns() } else { 0 }
    }
}
