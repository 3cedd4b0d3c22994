use super::*;
use crate::backoff;

const S: Duration = Duration::from_secs(1);

fn service(name: &str, more: &str) -> Service {
    Service::parse(name, &format!("exec = /bin/{name}\n{more}")).expect("a right file")
}

fn units(services: Vec<Service>) -> Units {
    let mut units = Units::default();
    let said = units.load(services, |_| false, Duration::ZERO);
    assert_eq!(said, []);
    units
}

fn starts(actions: &[Action]) -> Vec<&str> {
    actions.iter().filter_map(|a| if let Action::Start(n) = a { Some(n.as_str()) } else { None }).collect()
}

#[test]
fn dependencies_are_up_first() {
    let mut u = units(vec![
        service("app", "after = net disk"),
        service("disk", ""),
        service("net", "type = oneshot"),
        service("off", "enabled = no"),
        service("else", "if-exists = /nowhere\n"),
        service("last", "after = else off"),
    ]);
    assert_eq!(starts(&u.tick(S)), ["disk", "last", "net"]);
    u.started("disk", 10, S);
    u.started("last", 12, S);
    u.started("net", 11, S);
    assert_eq!(starts(&u.tick(S)), [""; 0]);
    assert_eq!(u.exited(11, Status::Code(0), S), Some(vec![]));
    assert_eq!(u.get("net").map(|u| u.state), Some(State::Done));
    assert_eq!(starts(&u.tick(S)), ["app"]);
    assert_eq!(u.exited(99, Status::Code(0), S), None);
}

#[test]
fn a_daemon_is_up_when_it_is_ready() {
    let mut u = units(vec![service("app", "after = db"), service("db", "ready = notify\nready-timeout = 3s")]);
    assert_eq!(starts(&u.tick(S)), ["db"]);
    u.started("db", 1, S);
    assert_eq!(starts(&u.tick(S * 2)), [""; 0]);
    assert_eq!(u.deadline(), Some(S * 4));
    // Too late: it is ended, and started again with back-off, as if it had failed.
    let late = u.tick(S * 4);
    assert!(matches!(&late[..], [Action::Report(t), Action::Terminate(1)] if t.contains("not ready")), "{late:?}");
    let ended = u.exited(1, Status::Code(0), S * 4).expect("its own");
    assert!(matches!(&ended[..], [Action::Kill(1), Action::Report(_)]), "{ended:?}");
    assert_eq!(starts(&u.tick(S * 4 + backoff::FIRST)), ["db"]);
    u.started("db", 2, S * 5);
    u.is_ready("db");
    assert_eq!((starts(&u.tick(S * 6)), u.deadline()), (vec!["app"], None));
    // What is being stopped or has ended is ready no more.
    u.stop("db", S * 6);
    u.exited(2, Status::Code(0), S * 6);
    u.is_ready("db");
    assert_eq!(u.get("db").map(|d| d.ready), Some(false));
}

#[test]
fn who_ends_is_started_again_with_back_off_and_reported() {
    let mut u = units(vec![service("a", "")]);
    let mut now = S;
    for (round, delay) in [100u64, 200, 400].into_iter().enumerate() {
        assert_eq!(starts(&u.tick(now)), ["a"]);
        u.started("a", 7, now);
        let actions = u.exited(7, Status::Signal(11), now).expect("its own");
        assert!(matches!(&actions[1], Action::Report(text) if text.contains("signal 11")), "{actions:?}");
        assert_eq!(u.deadline(), Some(now + Duration::from_millis(delay)));
        assert_eq!(starts(&u.tick(now)), [""; 0]);
        assert_eq!(u.get("a").map(|a| a.restarts), Some(round as u32 + 1));
        now += Duration::from_millis(delay);
    }
    let said = u.not_started("a", "no such file", now);
    assert!(matches!(&said[0], Action::Report(text) if text.contains("no such file")));
    assert_eq!(u.deadline(), Some(now + backoff::FIRST * 8));
}

#[test]
fn policies_of_restart() {
    let mut u = units(vec![service("f", "restart = on-failure"), service("n", "restart = never")]);
    for (name, pid, status, then) in [
        ("f", 1, Status::Code(0), State::Ended(Status::Code(0))),
        ("n", 2, Status::Code(3), State::Ended(Status::Code(3))),
    ] {
        u.started(name, pid, S);
        u.exited(pid, status, S);
        assert_eq!(u.get(name).map(|u| u.state), Some(then));
    }
    u.start("f", S);
    u.started("f", 1, S);
    u.exited(1, Status::Code(1), S);
    assert!(matches!(u.get("f").map(|u| u.state), Some(State::Backoff(_))));
}

#[test]
fn stopping_is_bounded_and_a_restart_follows_the_end() {
    let mut u = units(vec![service("a", "stop-timeout = 2s")]);
    u.started("a", 5, S);
    assert_eq!(u.restart("a", S), Some(vec![Action::Terminate(5)]));
    assert_eq!(u.tick(S * 2), []);
    assert!(u.tick(S * 3).contains(&Action::Kill(5)));
    u.exited(5, Status::Signal(9), S * 3);
    assert_eq!(starts(&u.tick(S * 3)), ["a"]);
    u.started("a", 6, S * 3);
    assert_eq!(u.stop("a", S * 3), [Action::Terminate(6)]);
    u.exited(6, Status::Code(0), S * 3);
    assert_eq!(u.get("a").map(|u| u.state), Some(State::Stopped));
    assert_eq!(u.tick(S * 9), []);
    assert_eq!(u.restart("b", S), None);
}

#[test]
fn closing_goes_backwards() {
    let mut u = units(vec![service("app", "after = db"), service("db", ""), service("w", "")]);
    u.started("db", 1, S);
    u.started("app", 2, S);
    let _ = u.tick(S);
    u.close();
    assert_eq!(u.tick(S), [Action::Terminate(2)]);
    u.exited(2, Status::Code(0), S);
    assert_eq!(u.tick(S), [Action::Terminate(1)]);
    assert!(!u.is_quiet());
    u.exited(1, Status::Code(0), S);
    assert!(u.is_quiet());
    assert_eq!(u.tick(S * 99), []);
}

#[test]
fn circles_and_missing_names_are_said_and_stand_in_nobodys_way() {
    let mut u = Units::default();
    let said = u.load(
        vec![
            service("a", "after = b"),
            service("b", "after = c"),
            service("c", "after = a"),
            service("d", "after = nobody"),
        ],
        |_| true,
        S,
    );
    assert_eq!(said.len(), 2, "{said:?}");
    assert_eq!(starts(&u.tick(S)), ["a", "d"]);
}

#[test]
fn a_new_set_of_files() {
    let mut u = units(vec![service("a", ""), service("b", "")]);
    u.started("a", 1, S);
    u.started("b", 2, S);
    let actions = u.load(vec![service("b", "user = x"), service("c", "")], |_| true, S);
    assert_eq!(actions, [Action::Terminate(1)]);
    assert_eq!(u.get("b").map(|b| (b.state, b.service.user.as_str())), Some((State::Up(2), "x")));
    assert_eq!(starts(&u.tick(S)), ["c"]);
    u.resume("b", State::Up(9), true, S);
    u.resume("c", State::Stopped, false, S);
    assert_eq!(u.get("b").and_then(|b| b.state.pid()), Some(9));
    assert_eq!(u.get("c").map(|c| c.state), Some(State::Stopped));
}
