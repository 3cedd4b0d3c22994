//! The kernel's command line as /proc/cmdline shows it: words, of which a quoted part may hold blanks.

/// All values of the parameter `name`, in order: `name=value` gives `value`, `name` alone gives an empty one.
pub fn values(line: &str, name: &str) -> Vec<String> {
    let mut values = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in line.chars().chain([' ']) {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => {
                let (key, value) = word.split_once('=').unwrap_or((&word, ""));
                if key == name {
                    values.push(value.to_owned());
                }
                word.clear();
            }
            c => word.push(c),
        }
    }
    values
}

/// Public keys given as `berth.sshkey=`: `"ssh-ed25519 AAAA… me"`, or with commas for blanks.
pub fn ssh_keys(line: &str) -> Vec<String> {
    let one = |key: String| if key.contains(' ') { key } else { key.replacen(',', " ", 2) };
    values(line, "berth.sshkey")
        .into_iter()
        .map(one)
        .filter(|k| !k.contains(char::is_control) && k.contains(' '))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found() {
        let line = "console=ttyAMA0 a=1 a=\"2 3\" b \"c=4 5\" a=\n";
        assert_eq!(values(line, "a"), ["1", "2 3", ""]);
        assert_eq!(values(line, "b"), [""]);
        assert_eq!(values(line, "c"), ["4 5"]);
        assert_eq!(values(line, "d"), [""; 0]);
        let keys = "berth.sshkey=ssh-ed25519,AAAA,me berth.sshkey=\"ssh-rsa BBBB you, too\" berth.sshkey=x";
        assert_eq!(ssh_keys(keys), ["ssh-ed25519 AAAA me", "ssh-rsa BBBB you, too"]);
    }
}
