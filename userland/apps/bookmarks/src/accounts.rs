//! Users, passwords, sessions.
//!
//! Passwords are kept as Argon2id hashes. A session is 32 random bytes that the client keeps in a cookie or sends as a bearer
//! token; the database has only their SHA-256, so that a copy of it opens nothing. The first account is made by whoever
//! comes first, and is the administrator's; more are made by an administrator.

use std::fmt::Write as _;

use argon2::{Algorithm, Argon2, Params, Version};
use hyper::StatusCode;
use ring::rand::{SecureRandom as _, SystemRandom};
use rusqlite::{Connection, OptionalExtension as _};
use tokio::sync::Semaphore;

use crate::db::Db;
use crate::fault::{Fault, Outcome, bad};
use crate::store::now;

/// How long a session lasts, in seconds.
pub const SESSION: i64 = 30 * 24 * 3600;
/// Memory in KiB and passes of a hash: the recommendation for Argon2id.
const COST: (u32, u32) = (19 * 1024, 2);

/// Hashes at once; each takes 19 MiB.
static HASHING: Semaphore = Semaphore::const_new(2);

/// Who is logged in.
#[derive(Debug, Clone)]
pub struct User {
    /// Its number.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// May make accounts.
    pub admin: bool,
}

fn random<const N: usize>() -> Outcome<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Fault::Lost("no random numbers".into()))?;
    Ok(bytes)
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut s, b| {
        // Writing into a string cannot fail.
        let _ = write!(s, "{b:02x}");
        s
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    digits.chunks(2).map(|p| if let [a, b] = p { Some((a * 16 + b) as u8) } else { None }).collect()
}

fn digest(password: &str, salt: &[u8], (memory, passes): (u32, u32)) -> Outcome<[u8; 32]> {
    let failed = |e: argon2::Error| Fault::Lost(format!("argon2: {e}"));
    let params = Params::new(memory, passes, 1, Some(32)).map_err(failed)?;
    let mut out = [0; 32];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(password.as_bytes(), salt, &mut out)
        .map_err(failed)?;
    Ok(out)
}

/// `argon2id$memory$passes$salt$hash`.
fn hash(password: &str) -> Outcome<String> {
    let salt = random::<16>()?;
    Ok(format!("argon2id${}${}${}${}", COST.0, COST.1, hex(&salt), hex(&digest(password, &salt, COST)?)))
}

fn verify(password: &str, stored: &str) -> Outcome<bool> {
    let parts: Vec<&str> = stored.split('$').collect();
    let ["argon2id", memory, passes, salt, want] = parts[..] else { return Ok(false) };
    let (Ok(memory), Ok(passes), Some(salt), Some(want)) = (memory.parse(), passes.parse(), unhex(salt), unhex(want))
    else {
        return Ok(false);
    };
    let is = digest(password, &salt, (memory, passes))?;
    // Every byte is looked at, however early they differ.
    Ok(want.len() == is.len() && want.iter().zip(is).fold(0, |d, (a, b)| d | (a ^ b)) == 0)
}

async fn slow<T: Send + 'static>(f: impl FnOnce() -> Outcome<T> + Send + 'static) -> Outcome<T> {
    let _place = HASHING.acquire().await;
    tokio::task::spawn_blocking(f).await.map_err(|e| Fault::Lost(e.to_string()))?
}

/// Is there any user yet?
pub fn is_new(c: &Connection) -> Outcome<bool> {
    Ok(c.query_row("select not exists (select 1 from users)", [], |r| r.get(0))?)
}

/// Makes an account: anybody may make the first, administrators the others.
pub async fn register(db: &Db, by: Option<&User>, name: &str, password: &str) -> Outcome<i64> {
    const CLOSED: Fault = Fault::Refused(StatusCode::FORBIDDEN, "Ask an administrator for an account.");
    let name = name.trim().to_owned();
    if name.is_empty() || name.chars().count() > 64 || name.chars().any(char::is_control) {
        return bad("A name has 1 to 64 characters.");
    }
    if password.len() < 8 || password.len() > 1024 {
        return bad("A password has at least 8 characters.");
    }
    let by_admin = by.is_some_and(|u| u.admin);
    if !by_admin && !db.read(is_new)? {
        return Err(CLOSED);
    }
    let password = password.to_owned();
    let hash = slow(move || hash(&password)).await?;
    db.write(move |c| {
        let first = is_new(c)?;
        if !first && !by_admin {
            return Err(CLOSED);
        }
        let added = c.execute(
            "insert or ignore into users(name, password, admin, created) values (?, ?, ?, ?)",
            (name, hash, first, now()),
        )?;
        if added == 0 {
            return Err(Fault::Refused(StatusCode::CONFLICT, "That name is taken."));
        }
        Ok(c.last_insert_rowid())
    })
    .await
}

/// Checks a password and begins a session; the result is its secret.
pub async fn login(db: &Db, name: &str, password: &str) -> Outcome<String> {
    let found: Option<(i64, String)> = db.read(|c| {
        let mut s = c.prepare_cached("select id, password from users where name = ?")?;
        Ok(s.query_row([name.trim()], |r| Ok((r.get(0)?, r.get(1)?))).optional()?)
    })?;
    // A name that nobody has takes as long as a wrong password.
    let (id, stored) = found.unwrap_or((0, format!("argon2id${}${}${}$00", COST.0, COST.1, "00".repeat(16))));
    let password = password.to_owned();
    if !slow(move || verify(&password, &stored)).await? {
        return Err(Fault::Refused(StatusCode::FORBIDDEN, "Name or password is wrong."));
    }
    begin(db, id).await
}

/// Begins a session of user `id`.
pub async fn begin(db: &Db, id: i64) -> Outcome<String> {
    let secret = hex(&random::<32>()?);
    let kept = kept(&secret);
    db.write(move |c| {
        c.execute("delete from sessions where expires < ?", [now()])?;
        c.execute("insert into sessions values (?, ?, ?)", (kept, id, now() + SESSION))?;
        Ok(())
    })
    .await?;
    Ok(secret)
}

fn kept(secret: &str) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, secret.as_bytes()).as_ref().to_vec()
}

/// Whose session it is.
pub fn user(db: &Db, secret: &str) -> Outcome<Option<User>> {
    db.read(|c| {
        let mut s = c.prepare_cached(
            "select id, name, admin from sessions join users on id = user where hash = ? and expires > ?",
        )?;
        Ok(s.query_row((kept(secret), now()), |r| Ok(User { id: r.get(0)?, name: r.get(1)?, admin: r.get(2)? }))
            .optional()?)
    })
}

/// Ends a session.
pub async fn logout(db: &Db, secret: &str) -> Outcome<()> {
    let kept = kept(secret);
    db.write(move |c| Ok(c.execute("delete from sessions where hash = ?", [kept]).map(drop)?)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_verify_and_others_do_not() {
        let stored = hash("correct horse").unwrap();
        assert!(verify("correct horse", &stored).unwrap() && !verify("correct hors", &stored).unwrap());
        assert!(!verify("", "").unwrap() && !verify("x", "argon2id$1$1$zz$00").unwrap());
    }
}
