//! `harness screenshot DIRECTORY`: the machine is switched on, and the application is used in a browser as a person would: an
//! account, bookmarks, a search, a star, an upload. Pictures of it are left in DIRECTORY.
//!
//! The browser is Chromium without a window, told what to do over its DevTools protocol: messages of JSON through two pipes
//! (`--remote-debugging-pipe`), each ended by a zero byte. So little of them is read that a search for strings is enough.
//! It is no gate: a gate must not need a browser.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Failure, Outcome, check};
use crate::paths::Paths;
use crate::ssh::forward;
use crate::vm::{Vm, VmConfig};
use crate::web::wait_for;

/// For a hang, not a measure.
const LIMIT: Duration = Duration::from_secs(60);
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// Bookmarks: address, title, tags, note.
const BOOKMARKS: [[&str; 4]; 7] = [
    [
        "https://www.sqlite.org/wal.html",
        "Write-Ahead Logging in SQLite",
        "database durability",
        "Readers do not block writers; what a checkpoint does, and when it is due.",
    ],
    [
        "https://www.rfc-editor.org/rfc/rfc8446",
        "RFC 8446: TLS 1.3",
        "network security",
        "Appendix E on what the handshake proves.",
    ],
    ["https://doc.rust-lang.org/nomicon/", "The Rustonomicon", "rust", ""],
    [
        "https://www.kernel.org/doc/html/latest/filesystems/ext4/",
        "ext4 data structures and algorithms",
        "filesystem durability linux",
        "Journal blocks, extents, checksums, byte by byte.",
    ],
    ["https://man7.org/linux/man-pages/man7/epoll.7.html", "epoll(7)", "linux network", ""],
    [
        "https://developer.arm.com/documentation/ddi0487/latest",
        "Arm Architecture Reference Manual",
        "arm reference",
        "Twelve thousand pages; D8 is the one on translation.",
    ],
    [
        "https://en.wikipedia.org/wiki/Berth_(moorings)",
        "Berth (moorings)",
        "reading",
        "A designated place where a ship stays while it is not under way.",
    ],
];

/// Boots, uses the application, leaves the pictures; true, or why not.
pub fn main(args: &[String]) -> Outcome<bool> {
    let [out] = args else { return Err(Failure::new("usage", "harness screenshot DIRECTORY")) };
    let out = std::path::absolute(out)?;
    let paths = Paths::new(None, None)?;
    let mut config = VmConfig {
        kernel: paths.kernel.clone(),
        initrd: Some(paths.host_initrd()?),
        append: "console=ttyAMA0".to_owned(),
        smp: 2,
        mem: 512,
        gic: 3,
        cpu: "neoverse-n1".to_owned(),
        el2: false,
        extra: vec![],
    };
    let ports = forward(&mut config, &[443])?;
    let at = ports.first().ok_or_else(|| Failure::new("harness.ports", "none"))?;
    let url = format!("https://{at}");
    let machine = Vm::start(&config, &paths.run)?.shell()?;
    wait_for("screenshot.answers", &format!("{url}/healthz"))?;
    let mut browser = Browser::start(&paths.run)?;
    let used = use_application(&mut browser, &url, &out);
    drop(browser);
    machine.poweroff()?;
    used?;
    paths.tidy();
    Ok(true)
}

fn use_application(b: &mut Browser, url: &str, out: &Path) -> Outcome {
    b.go(url, "/login", "Welcome")?;
    b.picture(&out.join("screenshot-welcome.png"))?;
    b.submit("form[action='/login']", &[("name", "harbour"), ("password", "a fair wind and a following sea")])?;
    b.until("document.querySelector('.search') !== null", "logged in")?;
    for [address, title, tags, note] in BOOKMARKS.into_iter().rev() {
        b.go(url, "/new", "Address")?;
        b.submit("form[action='/new']", &[("url", address), ("title", title), ("tags", tags), ("note", note)])?;
        b.until(&format!("location.pathname === '/' && document.body.innerText.includes({title:?})"), title)?;
    }
    // The one on top: a star and a file.
    b.run("document.querySelector('.list a.more').click()")?;
    b.until("document.querySelector('form[action$=\"/star\"]') !== null", "the bookmark")?;
    b.run("document.querySelector('form[action$=\"/star\"]').requestSubmit()")?;
    b.until("document.querySelector('.star') !== null && document.readyState === 'complete'", "the star")?;
    b.run(
        "const files = new DataTransfer(); files.items.add(new File(['a checkpoint copies pages back\\n'.repeat(900)], 'notes on checkpoints.txt')); \
         const form = document.querySelector('form[enctype]'); form.querySelector('input').files = files.files; form.requestSubmit()",
    )?;
    b.until("document.querySelector('.files a') !== null && document.readyState === 'complete'", "the file")?;
    b.picture(&out.join("screenshot-bookmark.png"))?;
    b.go(url, "/", "epoll")?;
    b.picture(&out.join("screenshot.png"))?;
    b.submit("form.search", &[("q", "checkpoint")])?;
    b.until("location.search.includes('checkpoint') && document.querySelectorAll('.list li').length === 1", "search")?;
    b.picture(&out.join("screenshot-search.png"))
}

/// A browser with one page.
struct Browser {
    child: Child,
    to: ChildStdin,
    from: ChildStdout,
    profile: PathBuf,
    session: String,
    number: u32,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

impl Browser {
    fn start(dir: &Path) -> Outcome<Self> {
        let found = |name: &&&str| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
        let name = BROWSERS.iter().find(found).ok_or_else(|| {
            Failure::new("screenshot.browser", format!("none of {}: install Debian's chromium", BROWSERS.join(", ")))
        })?;
        let profile = dir.join("browser");
        // The protocol is spoken on descriptors 3 and 4.
        let line = format!(
            "exec {name} --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars \
             --disable-background-networking --disable-component-update --ignore-certificate-errors --no-proxy-server \
             --window-size=1200,800 --force-color-profile=srgb --user-data-dir='{}' --remote-debugging-pipe about:blank \
             3<&0 4>&1 </dev/null >/dev/null 2>'{}'",
            profile.display(),
            dir.join("browser.log").display()
        );
        let mut child = Command::new("sh").args(["-c", &line]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::new("harness.pipe", "no pipes to the browser"));
        };
        let mut browser = Self { child, to, from, profile, session: String::new(), number: 0 };
        let targets = browser.ask("Target.getTargets", "{}")?;
        let page = targets.split('{').find(|t| t.contains("\"type\":\"page\"")).unwrap_or_default();
        let target = value(page, "targetId").ok_or_else(|| Failure::new("screenshot.browser", targets.clone()))?;
        let answer =
            browser.ask("Target.attachToTarget", &format!("{{\"targetId\":\"{target}\",\"flatten\":true}}"))?;
        browser.session = value(&answer, "sessionId").unwrap_or_default();
        let size = "{\"width\":1200,\"height\":800,\"deviceScaleFactor\":1,\"mobile\":false}";
        browser.ask("Emulation.setDeviceMetricsOverride", size)?;
        Ok(browser)
    }

    /// One request and its answer; events in between are dropped.
    fn ask(&mut self, method: &str, params: &str) -> Outcome<String> {
        self.number += 1;
        let session =
            if self.session.is_empty() { String::new() } else { format!(",\"sessionId\":\"{}\"", self.session) };
        let n = self.number;
        write!(self.to, "{{\"id\":{n},\"method\":\"{method}\",\"params\":{params}{session}}}\0")?;
        let start = format!("{{\"id\":{n},");
        loop {
            let mut message = Vec::new();
            loop {
                let mut byte = [0; 4096];
                // Messages come one for each request, events aside: a byte at a time only at their ends.
                let one = if message.is_empty() { 1 } else { byte.len() };
                let got = self.from.read(byte.get_mut(..one).unwrap_or_default())?;
                check(got > 0, "screenshot.browser", || format!("it ended at {method}"))?;
                message.extend_from_slice(byte.get(..got).unwrap_or_default());
                if message.last() == Some(&0) {
                    break;
                }
            }
            let text = String::from_utf8_lossy(&message).into_owned();
            if let Some(answer) = text.split('\0').find(|m| m.starts_with(&start)) {
                check(!answer.contains("\"error\":{"), "screenshot.protocol", || format!("{method}: {answer}"))?;
                return Ok(answer.to_owned());
            }
        }
    }

    /// Runs a script in the page; its value as JSON.
    fn run(&mut self, script: &str) -> Outcome<String> {
        let quoted = quote(&format!("(() => {{ {script} }})()"));
        self.ask("Runtime.evaluate", &format!("{{\"expression\":{quoted},\"returnByValue\":true}}"))
    }

    /// Waits until an expression is true.
    fn until(&mut self, expression: &str, what: &str) -> Outcome {
        let start = Instant::now();
        loop {
            let got = self.run(&format!("return Boolean({expression})"))?;
            if got.contains("\"value\":true") {
                return Ok(());
            }
            check(start.elapsed() < LIMIT, "screenshot.until", || {
                let page = value(&self.run("return document.body.innerText").unwrap_or_default(), "value");
                format!("{what}: {expression} on\n{}", page.unwrap_or_default())
            })?;
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn go(&mut self, url: &str, path: &str, text: &str) -> Outcome {
        self.ask("Page.navigate", &format!("{{\"url\":{}}}", quote(&format!("{url}{path}"))))?;
        self.until(&format!("document.readyState === 'complete' && document.body.innerText.includes({text:?})"), path)
    }

    fn submit(&mut self, form: &str, fields: &[(&str, &str)]) -> Outcome {
        let mut script = format!("const form = document.querySelector({form:?});");
        for (name, text) in fields {
            script.push_str(&format!("form.elements[{name:?}].value = {};", quote(text)));
        }
        self.run(&(script + "form.requestSubmit()")).map(drop)
    }

    fn picture(&mut self, file: &Path) -> Outcome {
        let answer = self.ask("Page.captureScreenshot", "{\"format\":\"png\"}")?;
        let data = value(&answer, "data").and_then(|d| base64(&d));
        let png = data.ok_or_else(|| Failure::new("screenshot.picture", "no picture"))?;
        std::fs::write(file, &png)?;
        println!("     {} ({} KiB)", file.display(), png.len() >> 10);
        Ok(())
    }
}

/// The string `"name":"…"` in a message; what is escaped in it stays so.
fn value(message: &str, name: &str) -> Option<String> {
    let (_, rest) = message.split_once(&format!("\"{name}\":\""))?;
    rest.split_once('"').map(|(v, _)| v.to_owned())
}

/// A string in JSON.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c if (c as u32) < 32 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0u32, 0);
    for c in text.bytes().filter(|c| *c != b'=') {
        let six = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(six);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_parts_of_the_protocol() {
        assert_eq!(base64("aGVsbG8gd29ybGQ=").as_deref(), Some(&b"hello world"[..]));
        assert_eq!(base64("a b"), None);
        assert_eq!(value("{\"id\":1,\"result\":{\"sessionId\":\"AB\"}}", "sessionId").as_deref(), Some("AB"));
        assert_eq!(quote("a\"b\\c\n\u{1}"), "\"a\\\"b\\\\c\\n\\u0001\"");
    }
}
