//! What browsers send: queries, forms, and forms with files.

/// The pairs of a query string or a form (`application/x-www-form-urlencoded`).
pub fn pairs(text: &str) -> Vec<(String, String)> {
    let pair = |p: &str| {
        let (name, value) = p.split_once('=').unwrap_or((p, ""));
        (decode(name), decode(value))
    };
    text.split('&').filter(|p| !p.is_empty()).map(pair).collect()
}

/// The value of `name`, empty if there is none.
pub fn value(pairs: &[(String, String)], name: &str) -> String {
    pairs.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()).unwrap_or_default()
}

/// `+` is a space, `%xx` a byte; what is wrong stays as it is.
pub fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&b) = bytes.get(at) {
        let digit = |at: usize| bytes.get(at).and_then(|d| char::from(*d).to_digit(16));
        match (b, digit(at + 1), digit(at + 2)) {
            (b'%', Some(a), Some(b)) => {
                out.push((a * 16 + b) as u8);
                at += 3;
                continue;
            }
            (b'+', ..) => out.push(b' '),
            _ => out.push(b),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// For use in a query or a path.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

/// The files in a `multipart/form-data` body: name and content. None if it is not one.
pub fn files<'a>(content_type: &str, body: &'a [u8]) -> Option<Vec<(String, &'a [u8])>> {
    let boundary = content_type.split(';').find_map(|p| p.trim().strip_prefix("boundary="))?.trim_matches('"');
    if boundary.is_empty() || boundary.len() > 70 {
        return None;
    }
    let first = format!("--{boundary}");
    let mark = format!("\r\n--{boundary}");
    let mut rest = body.get(find(body, first.as_bytes())? + first.len()..)?;
    let mut out = Vec::new();
    while !rest.starts_with(b"--") {
        rest = rest.strip_prefix(b"\r\n")?;
        let head_len = find(rest, b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&rest[..head_len]);
        let content = &rest[head_len + 4..];
        let len = find(content, mark.as_bytes())?;
        if let Some(name) = file_name(&head) {
            out.push((name, &content[..len]));
        }
        rest = &content[len + mark.len()..];
    }
    Some(out)
}

fn file_name(head: &str) -> Option<String> {
    let line = head.lines().find(|l| l.to_ascii_lowercase().starts_with("content-disposition:"))?;
    let (_, rest) = line.split_once("filename=\"")?;
    let (name, _) = rest.split_once('"')?;
    (!name.is_empty()).then(|| name.to_owned())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    loop {
        let at = from + haystack.get(from..)?.iter().position(|b| *b == first)?;
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_decode() {
        let p = pairs("a=1+2&b=%C3%BC%&&c");
        assert_eq!(
            (value(&p, "a"), value(&p, "b"), value(&p, "c"), value(&p, "d")),
            ("1 2".into(), "ü%".into(), String::new(), String::new())
        );
        assert_eq!(decode(&encode("ü &+/%")), "ü &+/%");
    }

    #[test]
    fn files_come_out_whole_and_broken_bodies_do_not_panic() {
        let body =
            b"--X\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a.txt\"\r\n\r\none\r\n--Y\r\n--X\r\n\
            Content-Disposition: form-data; name=\"n\"\r\n\r\nvalue\r\n--X--\r\n";
        let kind = "multipart/form-data; boundary=X";
        assert_eq!(files(kind, body).unwrap(), [("a.txt".to_owned(), &b"one\r\n--Y"[..])]);
        for cut in 0..body.len() {
            let _ = files(kind, &body[..cut]);
        }
        assert!(files("text/plain", body).is_none());
    }
}
