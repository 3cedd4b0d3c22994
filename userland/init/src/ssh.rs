//! What ssh needs at boot: the host's keys, made once and kept on the data disk, and the keys that may log in.
//!
//! /etc/dropbear is a link to where the host's keys are: /data/ssh, or /run/ssh on a machine without a data disk, which then
//! has a new identity after every boot. Root's authorized keys are those of /data/ssh/authorized_keys, of the image and of
//! the kernel parameter `berth.sshkey=`. No password is set anywhere, and without a key nobody gets in.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::cmdline;

const KEYGEN: &str = "/usr/bin/dropbearkey";
const HOST_KEY: &str = "dropbear_ed25519_host_key";

/// Prepare the keys; `store` is the directory that keeps them. Returns what is to be said.
pub fn prepare(store: &Path, line: &str) -> Vec<String> {
    let mut said = Vec::new();
    if let Err(e) = private_directory(store) {
        return vec![format!("{}: {e}: no ssh", store.display())];
    }
    if fs::read_link("/etc/dropbear").ok().as_deref() != Some(store) {
        let _ = fs::remove_file("/etc/dropbear").or_else(|_| fs::remove_dir_all("/etc/dropbear"));
        if let Err(e) = std::os::unix::fs::symlink(store, "/etc/dropbear") {
            said.push(format!("/etc/dropbear: {e}"));
        }
    }
    said.extend(host_key(store));
    match authorize(store, line) {
        Ok(0) => said.push("no key may log in by ssh: put one into /data/ssh/authorized_keys".into()),
        Ok(_) => {}
        Err(e) => said.push(format!("/root/.ssh/authorized_keys: {e}")),
    }
    said
}

fn private_directory(path: &Path) -> std::io::Result<()> {
    if !path.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    }
    Ok(())
}

/// Make the host's key if there is none (or an empty one, as an interrupted write leaves it), under another name first, so
/// that a power cut never leaves half a key.
fn host_key(store: &Path) -> Option<String> {
    let key = store.join(HOST_KEY);
    if fs::metadata(&key).is_ok_and(|m| m.len() > 0) || !Path::new(KEYGEN).exists() {
        return None;
    }
    let new = store.join("new_host_key");
    let _ = fs::remove_file(&new);
    let made = Command::new(KEYGEN)
        .args(["-t", "ed25519", "-f"])
        .arg(&new)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let output = match made {
        Ok(output) if output.status.success() => output,
        Ok(output) => return Some(format!("{KEYGEN} failed: {}", output.status)),
        Err(e) => return Some(format!("{KEYGEN}: {e}")),
    };
    let placed = fs::File::open(&new).and_then(|f| f.sync_all()).and_then(|()| fs::rename(&new, &key));
    if let Err(e) = placed.and_then(|()| fs::File::open(store)?.sync_all()) {
        return Some(format!("{}: {e}", key.display()));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let print = text.lines().find_map(|l| l.strip_prefix("Fingerprint: ")).unwrap_or("?").trim().to_owned();
    Some(format!("made this machine's ssh key, {print}"))
}

/// Write root's authorized keys; how many there are.
fn authorize(store: &Path, line: &str) -> std::io::Result<usize> {
    let home = Path::new("/root/.ssh");
    private_directory(home)?;
    let file = home.join("authorized_keys");
    // The image's own are kept beside, so that a second start of process 1 does not add them up.
    let image = home.join("authorized_keys.image");
    if !image.exists() && file.exists() {
        fs::rename(&file, &image)?;
    }
    let read = |p: &Path| fs::read_to_string(p).unwrap_or_default();
    let keys = merge(&[&read(&image), &read(&store.join("authorized_keys")), &cmdline::ssh_keys(line).join("\n")]);
    let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&file)?;
    std::io::Write::write_all(&mut out, keys.as_bytes())?;
    // dropbear takes no keys from a directory that others may write to.
    for path in ["/root", "/root/.ssh"] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(keys.lines().count())
}

/// The key lines of `sources`, each once.
fn merge(sources: &[&str]) -> String {
    let mut lines: Vec<&str> = Vec::new();
    for line in sources.iter().flat_map(|s| s.lines()).map(str::trim) {
        if !line.is_empty() && !line.starts_with('#') && !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.iter().flat_map(|l| [*l, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_from_everywhere_once() {
        assert_eq!(merge(&["# mine\na b\n\n", "a b\nc d", "e f"]), "a b\nc d\ne f\n");
        assert_eq!(merge(&["", "#"]), "");
    }
}
