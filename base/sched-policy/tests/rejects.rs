//! What must be refused is refused, and nothing has changed afterwards.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_precision_loss)]

mod common;
use common::*;
use sched_policy::*;

/// A victim that runs one thread while two wait.
fn victim(waiting: [Thread; 2]) -> (RunQueue<Thread>, Thread) {
    let mut queue = queue(1);
    let _ = queue.enqueue(fair(0, 0), Arrival::New, 0);
    let running = queue.next(0).unwrap();
    for task in waiting {
        let _ = queue.enqueue(task, Arrival::Wakeup, 0);
    }
    (queue, running)
}

fn assert_unchanged(mut queue: RunQueue<Thread>, running: &Thread, load: i64) {
    assert_eq!(ids(&queue), [1, 2].into());
    assert_eq!(queue.fair_load(), load);
    queue.for_each_queued(|task| assert_eq!(task.entity().state(), RunState::Queued));
    assert_eq!(running.entity().state(), RunState::Running);
    assert!(queue.switch_away(running, 1).is_some());
}

#[test]
fn test_reject_steal_above_bound() {
    let (mut queue, running) = victim([fair(1, 0), fair(2, 0)]);
    let load = queue.fair_load();
    let many = StealRequest { thief: cpu(0), max_qos: QosClass::PerfBurst, count: STEAL_BOUND + 1, room: 100 };
    assert_eq!(queue.steal(&many, 0), Err(StealRefusal::AboveBound));
    let full = StealRequest { count: 1, room: 0, ..many };
    assert_eq!(queue.steal(&full, 0), Err(StealRefusal::AboveBound));
    assert_unchanged(queue, &running, load);
}

#[test]
fn test_reject_steal_higher_qos() {
    let interactive = |id| thread(id, Policy::Fair(Nice::ZERO), QosClass::Interactive, CpuMask::ALL);
    let (mut queue, running) = victim([interactive(1), interactive(2)]);
    let load = queue.fair_load();
    let request = StealRequest { thief: cpu(0), max_qos: QosClass::Normal, count: 1, room: 100 };
    assert_eq!(queue.steal(&request, 0), Err(StealRefusal::HigherQos));
    assert_unchanged(queue, &running, load);
}

#[test]
fn test_reject_steal_against_affinity_and_the_place_is_kept() {
    let pinned = thread(1, Policy::Fair(Nice::ZERO), QosClass::Normal, CpuMask::one(cpu(1)));
    let (mut queue, running) = victim([pinned.clone(), thread(2, Policy::Idle, QosClass::Normal, CpuMask::ALL)]);
    let request = StealRequest { thief: cpu(0), max_qos: QosClass::PerfBurst, count: 1, room: 100 };
    let stolen = queue.steal(&request, 0).unwrap();
    assert_eq!((stolen.0.id, stolen.entity().state()), (2, RunState::Off));
    assert_eq!(queue.steal(&request, 0), Err(StealRefusal::Affinity));
    assert_eq!(queue.switch_away(&running, 1), Some(pinned), "still first in line");

    let first = thread(3, Policy::Fifo(RtPriority::new(9).unwrap()), QosClass::Normal, CpuMask::one(cpu(1)));
    let mut queue = common::queue(1);
    for task in [first.clone(), fifo(4, 9), fifo(5, 9)] {
        let _ = queue.enqueue(task, Arrival::Wakeup, 0);
    }
    assert_eq!(queue.steal(&request, 0).unwrap().0.id, 4);
    assert_eq!(queue.next(0), Some(first));
}

#[test]
fn test_reject_steal_of_what_an_idle_cpu_is_about_to_run() {
    let mut queue = queue(1);
    let _ = queue.enqueue(fair(1, 0), Arrival::New, 0);
    let request = StealRequest { thief: cpu(0), max_qos: QosClass::PerfBurst, count: 1, room: 100 };
    assert_eq!(queue.steal(&request, 0), Err(StealRefusal::Empty));
    assert_eq!(queue.queued(), 1);
}

#[test]
fn test_reject_runqueue_full() {
    let admission = Admission::new(4);
    admission.set_cpus(2);
    let mut queues = [RunQueue::new(cpu(0)), RunQueue::new(cpu(1))];
    let mut grow = |n| {
        for q in &mut queues {
            let q: &mut RunQueue<Thread> = q;
            drop(q.grow(Storage::new(n).unwrap()));
        }
        true
    };
    let mut held: Vec<_> = (0..8).map(|_| admission.reserve(QosClass::Normal, &mut grow).unwrap()).collect();
    let refused = admission.reserve(QosClass::Normal, &mut grow);
    assert_eq!(refused.err(), Some(QueueFull { class: QosClass::Normal, limit: Some(8) }));
    assert_eq!((admission.admitted(QosClass::Normal), admission.total()), (8, 8));

    // A change into the full class is refused too, and the place in the old class stays.
    let other = admission.reserve(QosClass::Idle, &mut grow).unwrap();
    assert!(other.change_class(QosClass::Normal).is_err());
    assert_eq!((other.class(), admission.admitted(QosClass::Idle), admission.total()), (QosClass::Idle, 1, 9));

    // Every accepted thread fits in any one queue.
    assert!(queues.iter().all(|q| q.capacity() >= 9));
    drop(held.pop());
    assert!(other.change_class(QosClass::Normal).is_ok());
    drop((held, other));
    assert_eq!(admission.total(), 0);
    assert!(QosClass::ALL.iter().all(|&class| admission.admitted(class) == 0));
}

#[test]
fn test_reject_runqueue_full_for_want_of_memory() {
    let admission = Admission::new(4);
    let refused = admission.reserve(QosClass::Normal, |_| false);
    assert_eq!(refused.err(), Some(QueueFull { class: QosClass::Normal, limit: None }));
    assert_eq!((admission.admitted(QosClass::Normal), admission.total(), admission.storage()), (0, 0, 0));
}

#[test]
fn test_reject_qos_set_unauthorized_self_escalation() {
    let task = fair(0, 0);
    for raw in [2, 3] {
        let refused = authorize_entity_qos(QosTarget::Caller, task.entity(), raw, false);
        assert_eq!(refused, Err(QosError::NotPermitted));
        assert_eq!(task.entity().qos(), QosClass::Normal);
        assert!(authorize_entity_qos(QosTarget::Caller, task.entity(), raw, true).is_ok());
    }
    for raw in [0, 1] {
        assert!(authorize_entity_qos(QosTarget::Caller, task.entity(), raw, false).is_ok());
    }
}

#[test]
fn test_reject_qos_set_unauthorized_other_pid() {
    let task = fair(0, 0);
    for raw in 0..4 {
        let refused = authorize_entity_qos(QosTarget::Other, task.entity(), raw, false);
        assert_eq!(refused, Err(QosError::NotPermitted), "even to lower it");
        assert_eq!(task.entity().qos(), QosClass::Normal);
        assert!(authorize_entity_qos(QosTarget::Other, task.entity(), raw, true).is_ok());
    }
}

#[test]
fn test_reject_invalid_qos_class() {
    let task = fair(0, 0);
    for raw in [4, 255, 256, u64::MAX] {
        for authority in [false, true] {
            for target in [QosTarget::Caller, QosTarget::Other] {
                let refused = authorize_entity_qos(target, task.entity(), raw, authority);
                assert_eq!(refused, Err(QosError::InvalidClass), "no clamping");
                assert_eq!(task.entity().qos(), QosClass::Normal);
            }
        }
    }
}

#[test]
fn test_reject_timer_over_limit() {
    let account = TimerAccount::new();
    for _ in 0..64 {
        account.reserve(64).unwrap();
    }
    assert_eq!(account.reserve(64), Err(TimerOverLimit { limit: 64 }));
    assert_eq!(account.live(), 64);
    account.release();
    assert_eq!(account.reserve(64), Ok(()));
}
