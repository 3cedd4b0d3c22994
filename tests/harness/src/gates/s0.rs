//! s0: every CPU knows who it is, by its register and by the bounded lookup, and both agree.

use super::programs::{checked, control, on_each};
use crate::error::check;
use crate::gate::{Case, Gate, Options};

/// The gate.
pub const GATE: Gate = Gate { name: "s0", title: "CPU identity: fast path and fallback agree on every CPU", cases };

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = on_each(&o.smp, &["smp cpus mutex_exact"], |sh, _| {
        // Identity as user space sees it, while CPUs come and go under it.
        let out = sh.ok("for i in 1 2 3 4 5; do cat /proc/berth/cpus | grep -c online; done | sort -u")?;
        let n = sh.ok("nproc")?;
        check(out == n, "cpus.online", || format!("{out} CPUs online in /proc/berth/cpus, nproc says {n}"))
    });
    for c in &mut cases {
        c.berth_only = true;
    }
    cases.push(checked(4, &["smp cpus mutex_exact"]));
    cases.push(control("the fast path lies", 4, "berth.sabotage=percpu", &["smp cpus"], "smp.cpus"));
    cases
}
