//! Users and groups, from /etc/passwd and /etc/group as passwd(5) and group(5) describe them.

/// Who a service runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
    /// Name.
    pub name: String,
}

/// Find `user` or `user:group`; nothing means root.
pub fn find(user: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (name, wanted) = user.split_once(':').map_or((user, None), |(u, g)| (u, Some(g)));
    let name = if name.is_empty() { "root" } else { name };
    let fields = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.first() == Some(&name));
    let number = |text: Option<&&str>| text.and_then(|t| t.parse::<u32>().ok());
    let (uid, gid, home) = match &fields {
        Some(f) => match (number(f.get(2)), number(f.get(3))) {
            (Some(uid), Some(gid)) => (uid, gid, f.get(5).copied().unwrap_or("/")),
            _ => return Err(format!("the entry of the user {name:?} is broken")),
        },
        None if name == "root" => (0, 0, "/root"),
        None => return Err(format!("there is no user {name:?}")),
    };
    let entries = || group.lines().map(|l| l.split(':').collect::<Vec<_>>());
    let gid = match wanted {
        None => gid,
        Some(g) => entries()
            .find(|f| f.first() == Some(&g))
            .and_then(|f| number(f.get(2)))
            .ok_or_else(|| format!("there is no group {g:?}"))?,
    };
    let member = |f: &Vec<&str>| f.get(3).is_some_and(|m| m.split(',').any(|n| n == name));
    let groups = entries().filter(member).filter_map(|f| number(f.get(2))).filter(|g| *g != gid).collect();
    Ok(Identity { uid, gid, groups, home: home.to_owned(), name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34:the web:/var/www:/bin/false\nodd:x:z:1::/:";
    const GROUP: &str = "root:x:0:\nwww:x:34:\ntls:x:50:www,root\nlog:x:51:www";

    #[test]
    fn users_and_groups_are_found() {
        let www = find("www", PASSWD, GROUP).expect("it is there");
        assert_eq!((www.uid, www.gid, www.groups.as_slice(), www.home.as_str()), (33, 34, &[50, 51][..], "/var/www"));
        let other = find("www:log", PASSWD, GROUP).expect("it is there");
        assert_eq!((other.gid, other.groups.as_slice()), (51, &[50][..]));
        assert_eq!(find("", "", "").map(|i| i.uid), Ok(0));
        assert!(find("nobody", PASSWD, GROUP).is_err());
        assert!(find("www:nobody", PASSWD, GROUP).is_err());
        assert!(find("odd", PASSWD, GROUP).is_err());
    }
}
