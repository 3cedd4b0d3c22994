//! The tables. `user_version` says how many of the steps below a database has had; the rest are taken in one transaction
//! when it is opened, so a power cut in between leaves the version before or the version after.

use rusqlite::Connection;

const STEPS: &[&str] = &[
    // 1: users, sessions, bookmarks with search, files
    "create table users(
       id integer primary key, name text not null unique collate nocase, password text not null, admin integer not null,
       created integer not null) strict;
     create table sessions(
       hash blob primary key, user integer not null references users on delete cascade, expires integer not null) strict, without rowid;
     create table bookmarks(
       id integer primary key autoincrement, user integer not null references users on delete cascade,
       url text not null, title text not null, note text not null, tags text not null,
       created integer not null, changed integer not null) strict;
     create index bookmarks_by_user on bookmarks(user, id);
     create table files(
       id integer primary key autoincrement, bookmark integer not null references bookmarks on delete cascade,
       name text not null, size integer not null, stored text not null, created integer not null) strict;
     create index files_by_bookmark on files(bookmark);
     create virtual table search using fts5(
       title, note, tags, url, content='bookmarks', content_rowid='id', tokenize='unicode61 remove_diacritics 2');
     create trigger bookmark_added after insert on bookmarks begin
       insert into search(rowid, title, note, tags, url) values (new.id, new.title, new.note, new.tags, new.url);
     end;
     create trigger bookmark_gone after delete on bookmarks begin
       insert into search(search, rowid, title, note, tags, url) values ('delete', old.id, old.title, old.note, old.tags, old.url);
     end;
     create trigger bookmark_changed after update of title, note, tags, url on bookmarks begin
       insert into search(search, rowid, title, note, tags, url) values ('delete', old.id, old.title, old.note, old.tags, old.url);
       insert into search(rowid, title, note, tags, url) values (new.id, new.title, new.note, new.tags, new.url);
     end;",
    // 2: stars
    "alter table bookmarks add column starred integer not null default 0;",
];

/// Takes the steps that the database has not had. A database of a later program is refused.
pub fn migrate(c: &Connection) -> Result<(), String> {
    let say = |e: rusqlite::Error| e.to_string();
    let version: u32 = c.query_row("pragma user_version", [], |r| r.get(0)).map_err(say)?;
    let version = version as usize;
    if version > STEPS.len() {
        return Err(format!("it has version {version}; this program knows versions up to {}", STEPS.len()));
    }
    for (at, step) in STEPS.iter().enumerate().skip(version) {
        c.execute_batch(&format!("begin immediate; {step} pragma user_version = {}; commit", at + 1)).map_err(say)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_database_keeps_its_rows_and_a_newer_one_is_refused() {
        let c = Connection::open_in_memory().unwrap();
        c.execute_batch(&format!("{} pragma user_version = 1", STEPS[0])).unwrap();
        c.execute_batch(
            "insert into users values (1, 'a', '', 0, 0);
             insert into bookmarks(user, url, title, note, tags, created, changed) values (1, 'u', 'Crème', '', '', 0, 0)",
        )
        .unwrap();
        migrate(&c).unwrap();
        migrate(&c).unwrap();
        let found: i64 = c.query_row("select rowid from search where search match 'creme'", [], |r| r.get(0)).unwrap();
        let starred: i64 = c.query_row("select starred from bookmarks where id = ?", [found], |r| r.get(0)).unwrap();
        assert_eq!((found, starred), (1, 0));
        c.execute_batch("pragma user_version = 99").unwrap();
        assert!(migrate(&c).unwrap_err().contains("99"));
    }
}
