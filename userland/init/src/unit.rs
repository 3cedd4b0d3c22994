//! The life of services: which is to be started, signalled or waited for, and when. No system call is made here and the time
//! comes from outside, so that every course of events can be tested on the host.
//!
//! A service waits for those it comes after; a daemon is up once it is ready (its file says what that means: that it runs, that
//! its health check passes, that it says so), a oneshot once it has ended with 0, and one that is left out (its `if-exists` is not there) stands in nobody's way. Who ends is started again as its file says, with
//! [back-off](crate::backoff). Stopping is SIGTERM to its process group, and SIGKILL when its time is over.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::service::{Kind, Ready, Restart, Service};

/// What a process ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// exit(2) with this number.
    Code(i32),
    /// A signal.
    Signal(i32),
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(n) => write!(f, "status {n}"),
            Self::Signal(n) => write!(f, "signal {n}"),
        }
    }
}

/// Where a service stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It waits for those it comes after.
    Waiting,
    /// It runs.
    Up(u32),
    /// It was told to end; at the given time it is killed.
    Stopping(u32, Duration),
    /// It ended and will be started at this time.
    Backoff(Duration),
    /// A oneshot that did its work.
    Done,
    /// Nobody wants it to run.
    Stopped,
    /// It ended and its file says that it stays so.
    Ended(Status),
    /// What it needs is not on this machine.
    Skipped,
}

impl State {
    /// Its process, if there is one.
    pub fn pid(self) -> Option<u32> {
        match self {
            Self::Up(pid) | Self::Stopping(pid, _) => Some(pid),
            _ => None,
        }
    }
}

/// A service and its life so far.
#[derive(Debug, Clone)]
pub struct Unit {
    /// Its file.
    pub service: Service,
    /// Where it stands.
    pub state: State,
    /// Since when.
    pub since: Duration,
    /// While it runs: those that come after it may be started.
    pub ready: bool,
    /// How often it was started again.
    pub restarts: u32,
    /// What it last ended with.
    pub last: Option<Status>,
    backoff: Backoff,
    /// After it has stopped it is started anew.
    again: bool,
    /// It is being stopped because it did not become ready: a failure of its own, not somebody's wish.
    late: bool,
}

impl Unit {
    /// When it has taken too long to become ready.
    fn overdue(&self) -> Option<Duration> {
        let waits = matches!(self.state, State::Up(_)) && !self.ready;
        waits.then_some(self.since.saturating_add(self.service.ready_timeout))
    }
}

/// What the machine has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start this service, then say `started` or `not_started`.
    Start(String),
    /// Ask this process group to end, by its service's signal.
    Terminate(u32),
    /// SIGKILL to this process group.
    Kill(u32),
    /// Say this.
    Report(String),
}

/// All services.
#[derive(Debug, Default)]
pub struct Units {
    units: BTreeMap<String, Unit>,
    closing: bool,
}

impl Units {
    /// Take over `services`: new ones wait for their turn, those that run go on and take their new file at the next start,
    /// those that are gone are stopped. Returns what is to be said and done.
    pub fn load(&mut self, services: Vec<Service>, present: impl Fn(&str) -> bool, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut services: BTreeMap<String, Service> = services.into_iter().map(|s| (s.name.clone(), s)).collect();
        break_cycles(&mut services, &mut actions);
        let gone: Vec<String> = self.units.keys().filter(|n| !services.contains_key(*n)).cloned().collect();
        for name in gone {
            actions.extend(self.stop(&name, now));
            if self.units.get(&name).is_some_and(|u| u.state.pid().is_none()) {
                self.units.remove(&name);
            }
        }
        for (name, service) in services {
            let skipped = !service.if_exists.is_empty() && !present(&service.if_exists);
            let first = if skipped {
                State::Skipped
            } else if service.enabled {
                State::Waiting
            } else {
                State::Stopped
            };
            match self.units.get_mut(&name) {
                Some(unit) => {
                    unit.service = service;
                    if unit.state == State::Skipped && !skipped {
                        (unit.state, unit.since) = (first, now);
                    }
                }
                None => {
                    let unit = Unit {
                        service,
                        state: first,
                        since: now,
                        ready: false,
                        restarts: 0,
                        last: None,
                        backoff: Backoff::default(),
                        again: false,
                        late: false,
                    };
                    self.units.insert(name, unit);
                }
            }
        }
        actions
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<&Unit> {
        self.units.get(name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Unit> {
        self.units.values()
    }

    /// After process 1 has replaced itself: this one stands where it stood.
    pub fn resume(&mut self, name: &str, state: State, ready: bool, now: Duration) {
        if let Some(unit) = self.units.get_mut(name) {
            (unit.state, unit.since, unit.ready) = (state, now, ready);
        }
    }

    fn is_satisfied(&self, name: &str) -> bool {
        self.units.get(name).is_none_or(|u| match (u.service.kind, u.state) {
            (_, State::Skipped | State::Done) => true,
            (Kind::Daemon, State::Up(_)) => u.ready,
            // Who waits for something that nobody wants would wait for ever.
            (_, State::Stopped) => true,
            _ => false,
        })
    }

    /// What is due at `now`.
    pub fn tick(&mut self, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.closing {
            let ready: Vec<String> =
                self.units.values().filter(|u| self.may_close(u)).map(|u| u.service.name.clone()).collect();
            for name in ready {
                actions.extend(self.stop(&name, now));
            }
        }
        let due: Vec<String> = self
            .units
            .values()
            .filter(|u| match u.state {
                State::Waiting => u.service.after.iter().all(|a| self.is_satisfied(a)),
                State::Backoff(at) => at <= now,
                _ => false,
            })
            .map(|u| u.service.name.clone())
            .collect();
        if !self.closing {
            actions.extend(due.into_iter().map(Action::Start));
        }
        for unit in self.units.values_mut() {
            if let State::Up(pid) = unit.state
                && !self.closing
                && unit.overdue().is_some_and(|at| at <= now)
            {
                let (name, limit) = (&unit.service.name, unit.service.ready_timeout);
                actions.push(Action::Report(format!("{name} is not ready after {limit:?} and is restarted")));
                actions.push(Action::Terminate(pid));
                (unit.state, unit.since) = (State::Stopping(pid, now + unit.service.stop_timeout), now);
                unit.late = true;
            }
            if let State::Stopping(pid, at) = unit.state
                && at <= now
            {
                actions.push(Action::Report(format!("{} did not end in time and is killed", unit.service.name)));
                actions.push(Action::Kill(pid));
                // Should even that not end it, it is said again.
                unit.state = State::Stopping(pid, now + Duration::from_secs(10));
            }
        }
        actions
    }

    /// When `tick` has something to do next, if time alone brings it.
    pub fn deadline(&self) -> Option<Duration> {
        self.units
            .values()
            .filter_map(|u| match u.state {
                State::Stopping(_, at) | State::Backoff(at) => Some(at),
                _ => u.overdue().filter(|_| !self.closing),
            })
            .min()
    }

    /// It runs, as `pid`.
    pub fn started(&mut self, name: &str, pid: u32, now: Duration) {
        if let Some(unit) = self.units.get_mut(name) {
            (unit.state, unit.since) = (State::Up(pid), now);
            unit.ready = unit.service.ready == Ready::Started || unit.service.kind == Kind::Oneshot;
        }
    }

    /// It can be built on.
    pub fn is_ready(&mut self, name: &str) {
        if let Some(unit) = self.units.get_mut(name).filter(|u| matches!(u.state, State::Up(_))) {
            unit.ready = true;
        }
    }

    /// It could not be started at all; it is tried again, with back-off.
    pub fn not_started(&mut self, name: &str, why: &str, now: Duration) -> Vec<Action> {
        let Some(unit) = self.units.get_mut(name) else { return Vec::new() };
        let delay = unit.backoff.ended(Duration::ZERO);
        (unit.state, unit.since) = (State::Backoff(now + delay), now);
        vec![Action::Report(format!("{name} cannot be started ({why}); next try in {delay:?}"))]
    }

    /// Process `pid` has ended. None if it is no service's.
    pub fn exited(&mut self, pid: u32, status: Status, now: Duration) -> Option<Vec<Action>> {
        let closing = self.closing;
        let unit = self.units.values_mut().find(|u| u.state.pid() == Some(pid))?;
        let ran = now.saturating_sub(unit.since);
        let name = unit.service.name.clone();
        // What a daemon left behind in its process group goes with it; what a oneshot began in the background stays.
        let done = unit.service.kind == Kind::Oneshot && status == Status::Code(0);
        let mut actions = if done { Vec::new() } else { vec![Action::Kill(pid)] };
        unit.last = Some(status);
        let late = std::mem::take(&mut unit.late);
        let was_told = matches!(unit.state, State::Stopping(..)) && !late;
        (unit.since, unit.ready) = (now, false);
        if was_told || closing {
            unit.state = if std::mem::take(&mut unit.again) && !closing { State::Waiting } else { State::Stopped };
            return Some(actions);
        }
        let failed = late || status != Status::Code(0);
        let again = match unit.service.restart {
            Restart::Always => true,
            Restart::OnFailure => failed,
            Restart::Never => false,
        };
        unit.state = if again {
            let delay = unit.backoff.ended(ran);
            unit.restarts = unit.restarts.saturating_add(1);
            actions.push(Action::Report(format!(
                "{name} ended with {status} after {}; next start in {delay:?}",
                seconds(ran)
            )));
            State::Backoff(now + delay)
        } else if done {
            State::Done
        } else {
            actions.push(Action::Report(format!("{name} ended with {status} after {}", seconds(ran))));
            State::Ended(status)
        };
        Some(actions)
    }

    /// Start it, whatever was before. None if there is no such service.
    pub fn start(&mut self, name: &str, now: Duration) -> Option<Vec<Action>> {
        let unit = self.units.get_mut(name)?;
        unit.backoff.reset();
        match unit.state {
            State::Up(_) => {}
            State::Stopping(..) => unit.again = true,
            _ => (unit.state, unit.since) = (State::Waiting, now),
        }
        Some(Vec::new())
    }

    /// Stop it.
    pub fn stop(&mut self, name: &str, now: Duration) -> Vec<Action> {
        let Some(unit) = self.units.get_mut(name) else { return Vec::new() };
        (unit.again, unit.late) = (false, false);
        match unit.state {
            State::Up(pid) => {
                (unit.state, unit.since) = (State::Stopping(pid, now + unit.service.stop_timeout), now);
                vec![Action::Terminate(pid)]
            }
            State::Stopping(..) | State::Skipped => Vec::new(),
            _ => {
                (unit.state, unit.since) = (State::Stopped, now);
                Vec::new()
            }
        }
    }

    /// Stop it and start it again. None if there is no such service.
    pub fn restart(&mut self, name: &str, now: Duration) -> Option<Vec<Action>> {
        self.units.get(name)?;
        let actions = self.stop(name, now);
        let more = self.start(name, now)?;
        Some(actions.into_iter().chain(more).collect())
    }

    /// From now on everything is stopped, those first that nobody comes after.
    pub fn close(&mut self) {
        self.closing = true;
        for unit in self.units.values_mut() {
            if unit.state.pid().is_none() {
                unit.state = State::Stopped;
            }
        }
    }

    fn may_close(&self, unit: &Unit) -> bool {
        matches!(unit.state, State::Up(_))
            && !self.units.values().any(|u| u.state.pid().is_some() && u.service.after.contains(&unit.service.name))
    }

    /// No service has a process.
    pub fn is_quiet(&self) -> bool {
        self.units.values().all(|u| u.state.pid().is_none())
    }
}

fn seconds(d: Duration) -> String {
    format!("{}.{} s", d.as_secs(), d.subsec_millis() / 100)
}

/// Services that wait for each other would never start: whoever closes a circle waits for nobody, and it is said.
fn break_cycles(services: &mut BTreeMap<String, Service>, actions: &mut Vec<Action>) {
    let names: Vec<String> = services.keys().cloned().collect();
    for name in &names {
        for after in services.get(name).map(|s| s.after.clone()).unwrap_or_default() {
            if !services.contains_key(&after) {
                actions.push(Action::Report(format!(
                    "{name} is to start after {after}, which does not exist: not waited for"
                )));
            }
        }
        let mut stack = services.get(name).map(|s| s.after.clone()).unwrap_or_default();
        let mut seen: Vec<String> = Vec::new();
        while let Some(next) = stack.pop() {
            if &next == name {
                actions.push(Action::Report(format!("{name} starts after itself by a circle: it waits for nobody")));
                if let Some(s) = services.get_mut(name) {
                    s.after.clear();
                }
                break;
            }
            if !seen.contains(&next) {
                stack.extend(services.get(&next).map(|s| s.after.clone()).unwrap_or_default());
                seen.push(next);
            }
        }
    }
}

#[cfg(test)]
mod tests;
