//! Bookmarks, tags, search, files.

use std::io::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::types::Value;
use rusqlite::{Connection, Row, params_from_iter};
use serde::{Deserialize, Serialize};

use crate::fault::{Outcome, bad};

/// Bookmarks on a page.
pub const PAGE: usize = 50;

/// Seconds since 1970.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// A bookmark.
#[derive(Debug, Clone, Serialize)]
pub struct Bookmark {
    /// Its number.
    pub id: i64,
    /// Where it leads.
    pub url: String,
    /// What it is called.
    pub title: String,
    /// What somebody thought of it.
    pub note: String,
    /// Words, separated by spaces.
    pub tags: String,
    /// Seconds since 1970.
    pub created: i64,
    /// Seconds since 1970.
    pub changed: i64,
    /// It is one of the good ones.
    pub starred: bool,
}

/// A file that belongs to a bookmark.
#[derive(Debug, Clone, Serialize)]
pub struct Attachment {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: i64,
    /// What it is called in the directory of files.
    #[serde(skip)]
    pub stored: String,
}

/// What somebody enters.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Entered {
    /// See [`Bookmark`].
    pub url: String,
    /// See [`Bookmark`]; the URL if empty.
    pub title: String,
    /// See [`Bookmark`].
    pub note: String,
    /// Words, separated by spaces or commas.
    pub tags: String,
}

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Words, all of which must occur, the last one as a beginning.
    pub words: String,
    /// A tag.
    pub tag: String,
    /// Only starred ones.
    pub starred: bool,
    /// Only with a smaller number: the next page.
    pub before: Option<i64>,
}

impl Entered {
    /// Checks it and puts it into the form in which it is kept.
    pub fn checked(mut self) -> Outcome<Self> {
        self.url = self.url.trim().into();
        let lower = self.url.to_ascii_lowercase();
        // Anything else, such as javascript:, would run in the reader's name.
        if !["http://", "https://", "ftp://", "mailto:"].iter().any(|s| lower.starts_with(s) && lower.len() > s.len()) {
            return bad("An address begins with http://, https://, ftp:// or mailto:.");
        }
        if self.url.len() > 4096 || self.url.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return bad("An address has at most 4096 characters and no spaces.");
        }
        self.title = self.title.trim().into();
        if self.title.is_empty() {
            self.title.clone_from(&self.url);
        }
        if self.title.len() > 4096 || self.note.len() > 64 * 1024 {
            return bad("A title has at most 4 KiB, a note at most 64 KiB.");
        }
        let mut tags: Vec<String> = self
            .tags
            .split([' ', ',', '\t', '\n', '\r'])
            .filter(|t| !t.is_empty())
            .map(|t| t.trim_start_matches('#').to_lowercase())
            .collect();
        tags.sort();
        tags.dedup();
        if tags.len() > 32 || tags.iter().any(|t| t.chars().count() > 64) {
            return bad("There may be 32 tags of 64 characters.");
        }
        self.tags = tags.join(" ");
        Ok(self)
    }
}

fn bookmark(r: &Row<'_>) -> rusqlite::Result<Bookmark> {
    Ok(Bookmark {
        id: r.get(0)?,
        url: r.get(1)?,
        title: r.get(2)?,
        note: r.get(3)?,
        tags: r.get(4)?,
        created: r.get(5)?,
        changed: r.get(6)?,
        starred: r.get(7)?,
    })
}

const COLUMNS: &str = "b.id, b.url, b.title, b.note, b.tags, b.created, b.changed, b.starred";

/// The newest bookmarks that fit, one more than a page if there is another page.
pub fn list(c: &Connection, user: i64, q: &Query) -> Outcome<Vec<Bookmark>> {
    let mut sql = format!("select {COLUMNS} from bookmarks b where b.user = ?");
    let mut values = vec![Value::from(user)];
    if let Some(words) = match_expression(&q.words) {
        sql.push_str(" and b.id in (select rowid from search where search match ?)");
        values.push(words.into());
    }
    if !q.tag.is_empty() {
        sql.push_str(" and ' ' || b.tags || ' ' like ? escape '\\'");
        let tag = q.tag.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
        values.push(format!("% {tag} %").into());
    }
    if q.starred {
        sql.push_str(" and b.starred");
    }
    if let Some(before) = q.before {
        sql.push_str(" and b.id < ?");
        values.push(before.into());
    }
    sql.push_str(" order by b.id desc limit 51");
    let mut s = c.prepare_cached(&sql)?;
    let rows = s.query_map(params_from_iter(values), bookmark)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Every word must occur; quoted, so that no word is an operator of the search language.
fn match_expression(words: &str) -> Option<String> {
    let words: Vec<String> =
        words.split_whitespace().take(16).map(|w| format!("\"{}\"", w.replace('"', "\"\""))).collect();
    (!words.is_empty()).then(|| format!("{} *", words.join(" ")))
}

/// One bookmark.
pub fn get(c: &Connection, user: i64, id: i64) -> Outcome<Bookmark> {
    let mut s = c.prepare_cached(&format!("select {COLUMNS} from bookmarks b where b.user = ? and b.id = ?"))?;
    Ok(s.query_row((user, id), bookmark)?)
}

/// Tags with how often they are used, the most used first.
pub fn tags(c: &Connection, user: i64) -> Outcome<Vec<(String, usize)>> {
    let mut s =
        c.prepare_cached("select tags from bookmarks where user = ? and tags <> '' order by id desc limit 2000")?;
    let mut counts = std::collections::HashMap::<String, usize>::new();
    for tags in s.query_map([user], |r| r.get::<_, String>(0))? {
        for tag in tags?.split(' ') {
            *counts.entry(tag.to_owned()).or_default() += 1;
        }
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts.truncate(40);
    Ok(counts)
}

/// Adds one; its number is the result.
pub fn add(c: &Connection, user: i64, e: &Entered) -> Outcome<i64> {
    let mut s = c.prepare_cached(
        "insert into bookmarks(user, url, title, note, tags, created, changed) values (?1, ?2, ?3, ?4, ?5, ?6, ?6)",
    )?;
    s.execute((user, &e.url, &e.title, &e.note, &e.tags, now()))?;
    Ok(c.last_insert_rowid())
}

/// Changes one.
pub fn change(c: &Connection, user: i64, id: i64, e: &Entered) -> Outcome<()> {
    get(c, user, id)?;
    let mut s =
        c.prepare_cached("update bookmarks set url = ?, title = ?, note = ?, tags = ?, changed = ? where id = ?")?;
    s.execute((&e.url, &e.title, &e.note, &e.tags, now(), id))?;
    Ok(())
}

/// Gives or takes the star.
pub fn star(c: &Connection, user: i64, id: i64) -> Outcome<()> {
    get(c, user, id)?;
    c.prepare_cached("update bookmarks set starred = not starred where id = ?")?.execute([id])?;
    Ok(())
}

/// Removes one; the result are the stored names of its files.
pub fn remove(c: &Connection, user: i64, id: i64) -> Outcome<Vec<String>> {
    get(c, user, id)?;
    let stored = files(c, id)?.into_iter().map(|f| f.stored).collect();
    c.execute("delete from bookmarks where id = ?", [id])?;
    Ok(stored)
}

/// The files of a bookmark.
pub fn files(c: &Connection, bookmark: i64) -> Outcome<Vec<Attachment>> {
    let mut s = c.prepare_cached("select id, name, size, stored from files where bookmark = ? order by id")?;
    let rows = s.query_map([bookmark], attachment)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn attachment(r: &Row<'_>) -> rusqlite::Result<Attachment> {
    Ok(Attachment { id: r.get(0)?, name: r.get(1)?, size: r.get(2)?, stored: r.get(3)? })
}

/// A file of one of the user's bookmarks.
pub fn file(c: &Connection, user: i64, id: i64) -> Outcome<Attachment> {
    let mut s = c.prepare_cached(
        "select f.id, f.name, f.size, f.stored from files f join bookmarks b on b.id = f.bookmark where b.user = ? and f.id = ?",
    )?;
    Ok(s.query_row((user, id), attachment)?)
}

/// Notes a file that is stored already.
pub fn add_file(c: &Connection, user: i64, bookmark: i64, name: &str, size: usize, stored: &str) -> Outcome<i64> {
    get(c, user, bookmark)?;
    let mut s = c.prepare_cached("insert into files(bookmark, name, size, stored, created) values (?, ?, ?, ?, ?)")?;
    s.execute((bookmark, name, size as i64, stored, now()))?;
    Ok(c.last_insert_rowid())
}

/// Puts a file's bytes on stable media under `stored`.
pub fn keep(dir: &Path, stored: &str, bytes: &[u8]) -> Outcome<()> {
    let mut file = std::fs::File::create_new(dir.join(stored))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    // The name is in the directory.
    std::fs::File::open(dir)?.sync_all()?;
    Ok(())
}

/// A file's name as somebody gave it, without what is not part of a name.
pub fn clean_name(name: &str) -> String {
    let name = name.rsplit(['/', '\\']).next().unwrap_or("");
    let name: String = name.chars().filter(|c| !c.is_control() && *c != '"').take(128).collect();
    if name.trim_matches(['.', ' ']).is_empty() { "file".into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entered(url: &str, title: &str, tags: &str) -> Entered {
        Entered { url: url.into(), title: title.into(), note: String::new(), tags: tags.into() }
    }

    #[test]
    fn what_is_entered_is_checked() {
        let e = entered(" https://example.org/ ", "", "B, #a b").checked().unwrap();
        assert_eq!(
            (e.url.as_str(), e.title.as_str(), e.tags.as_str()),
            ("https://example.org/", "https://example.org/", "a b")
        );
        for bad in ["javascript:alert(1)", "", "https://", "http://a b", "data:text/html,x"] {
            assert!(entered(bad, "", "").checked().is_err(), "{bad}");
        }
        assert_eq!((clean_name("../../a\"b"), clean_name("..")), ("ab".into(), "file".into()));
    }

    #[test]
    fn search_finds_words_tags_and_only_ones_own() {
        let c = Connection::open_in_memory().unwrap();
        crate::schema::migrate(&c).unwrap();
        c.execute_batch("insert into users values (1, 'a', '', 0, 0), (2, 'b', '', 0, 0)").unwrap();
        for (user, title, tags) in
            [(1, "Rust in the kernel", "os rust"), (1, "Über \"sqlite\" AND more", "db"), (2, "rust", "")]
        {
            add(&c, user, &entered("http://x/", title, tags).checked().unwrap()).unwrap();
        }
        let found = |words: &str, tag: &str| {
            let q = Query { words: words.into(), tag: tag.into(), ..Query::default() };
            list(&c, 1, &q).unwrap().iter().map(|b| b.id).collect::<Vec<_>>()
        };
        assert_eq!(found("", ""), [2, 1]);
        assert_eq!(found("kern", ""), [1]);
        assert_eq!(found("uber sql", ""), [2]);
        assert_eq!(found("rust db", ""), Vec::<i64>::new());
        assert_eq!(found("", "rust"), [1]);
        assert_eq!(found("", "r_st"), Vec::<i64>::new());
        for odd in ["\"", "AND", "a* OR (", "-", "title:", "^"] {
            found(odd, "");
        }
        star(&c, 1, 1).unwrap();
        assert!(get(&c, 1, 1).unwrap().starred && get(&c, 2, 1).is_err() && star(&c, 2, 1).is_err());
        remove(&c, 1, 1).unwrap();
        assert_eq!(found("kern", ""), Vec::<i64>::new());
    }
}
