//! The pages: HTML that works without scripts.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use hyper::StatusCode;

use crate::accounts::{self, User};
use crate::fault::{Fault, Outcome, bad};
use crate::form::{self, encode};
use crate::http::{Answer, App, Asked, over_tls, reply, see, with_session};
use crate::store::{self, Attachment, Bookmark, Entered, Query};

/// The one style sheet.
pub const STYLE: &str = include_str!("../assets/style.css");

/// Answers a browser.
pub async fn answer(app: &App, asked: &Asked) -> Outcome<Answer> {
    let path: Vec<&str> = asked.path.trim_matches('/').split('/').collect();
    match (asked.method.as_str(), path.as_slice()) {
        ("GET", [""]) => home(app, asked),
        ("GET", ["login"]) => login_page(app, ""),
        ("POST", ["login"]) => login(app, asked).await,
        ("POST", ["logout"]) => {
            if let Some(secret) = &asked.secret {
                accounts::logout(&app.db, secret).await?;
            }
            Ok(with_session(see("/login"), "", over_tls(asked)))
        }
        ("GET", ["users"]) => users_page(asked.user()?, ""),
        ("POST", ["users"]) => add_user(app, asked).await,
        ("GET", ["new"]) => {
            let value = |name| form::value(&asked.query, name);
            let e = Entered { url: value("url"), title: value("title"), ..Entered::default() };
            Ok(page("New bookmark", Some(asked.user()?), &editor("/new", &e, "", "Add")))
        }
        ("POST", ["new"]) => add(app, asked).await,
        ("GET", ["b", id]) => {
            let (user, id) = (asked.user()?, number(id)?);
            let (b, files) = app.db.read(|c| Ok((store::get(c, user.id, id)?, store::files(c, id)?)))?;
            Ok(page(&b.title, Some(user), &detail(&b, &files)))
        }
        ("POST", ["b", id]) => change(app, asked, number(id)?).await,
        ("POST", ["b", id, "star"]) => {
            let (user, id) = (asked.user()?.id, number(id)?);
            app.db.write(move |c| store::star(c, user, id)).await?;
            Ok(see(&format!("/b/{id}")))
        }
        ("POST", ["b", id, "delete"]) => {
            app.remove(asked.user()?.id, number(id)?).await?;
            Ok(see("/"))
        }
        ("POST", ["b", id, "files"]) => upload(app, asked, number(id)?).await,
        ("GET", ["files", id, ..]) => app.send_file(asked.user()?.id, number(id)?).await,
        _ => Err(Fault::Refused(StatusCode::NOT_FOUND, "There is no such page.")),
    }
}

fn number(text: &str) -> Outcome<i64> {
    text.parse().map_err(|_| Fault::Refused(StatusCode::NOT_FOUND, "There is no such page."))
}

async fn login(app: &App, asked: &Asked) -> Outcome<Answer> {
    let form = asked.form();
    let (name, password) = (form::value(&form, "name"), form::value(&form, "password"));
    let done = if form::value(&form, "first").is_empty() {
        accounts::login(&app.db, &name, &password).await
    } else {
        match accounts::register(&app.db, None, &name, &password).await {
            Ok(id) => accounts::begin(&app.db, id).await,
            Err(e) => Err(e),
        }
    };
    match done {
        Ok(secret) => Ok(with_session(see("/"), &secret, over_tls(asked))),
        Err(Fault::Refused(status, why)) => {
            let mut answer = login_page(app, why)?;
            *answer.status_mut() = status;
            Ok(answer)
        }
        Err(e) => Err(e),
    }
}

async fn add_user(app: &App, asked: &Asked) -> Outcome<Answer> {
    let user = asked.user()?;
    let form = asked.form();
    let name = form::value(&form, "name");
    match accounts::register(&app.db, Some(user), &name, &form::value(&form, "password")).await {
        Ok(_) => users_page(user, &format!("{name} has an account now.")),
        Err(Fault::Refused(_, why)) => users_page(user, why),
        Err(e) => Err(e),
    }
}

fn entered(asked: &Asked) -> Entered {
    let form = asked.form();
    let value = |name| form::value(&form, name);
    Entered { url: value("url"), title: value("title"), note: value("note"), tags: value("tags") }
}

async fn add(app: &App, asked: &Asked) -> Outcome<Answer> {
    let user = asked.user()?;
    let given = entered(asked);
    match given.clone().checked() {
        Ok(e) => {
            let id = user.id;
            app.db.write(move |c| store::add(c, id, &e)).await?;
            Ok(see("/"))
        }
        Err(Fault::Refused(status, why)) => {
            let mut answer = page("New bookmark", Some(user), &editor("/new", &given, why, "Add"));
            *answer.status_mut() = status;
            Ok(answer)
        }
        Err(e) => Err(e),
    }
}

async fn change(app: &App, asked: &Asked, id: i64) -> Outcome<Answer> {
    let user = asked.user()?.id;
    let e = entered(asked).checked()?;
    app.db.write(move |c| store::change(c, user, id, &e)).await?;
    Ok(see(&format!("/b/{id}")))
}

async fn upload(app: &App, asked: &Asked, id: i64) -> Outcome<Answer> {
    let user = asked.user()?.id;
    let kind = asked.headers.get(hyper::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let Some(files) = form::files(kind, &asked.body) else { return bad("This is not a form with a file.") };
    if files.is_empty() {
        return bad("Choose a file first.");
    }
    for (name, content) in files {
        app.keep_file(user, id, &name, Bytes::copy_from_slice(content)).await?;
    }
    Ok(see(&format!("/b/{id}")))
}

/// `text` as text in HTML, in attributes too.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn page(title: &str, user: Option<&User>, body: &str) -> Answer {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{} – Bookmarks</title><link rel=\"stylesheet\" href=\"/style.css\"></head><body><header><a class=\"home\" href=\"/\">Bookmarks</a>",
        escape(title)
    );
    if let Some(user) = user {
        let admin = if user.admin { "<a href=\"/users\">Users</a>" } else { "" };
        // Writing into a string cannot fail.
        let _ = write!(
            html,
            "<nav><a class=\"button\" href=\"/new\">New bookmark</a>{admin}\
             <form method=\"post\" action=\"/logout\"><button class=\"link\">Log out {}</button></form></nav>",
            escape(&user.name)
        );
    }
    let _ = writeln!(html, "</header><main>{body}</main></body></html>");
    reply(StatusCode::OK, "text/html; charset=utf-8", html)
}

/// A page that says what is wrong.
pub fn failed(status: StatusCode, why: &str) -> Answer {
    let title = format!("{} {}", status.as_str(), status.canonical_reason().unwrap_or(""));
    let body =
        format!("<h1>{}</h1><p>{}</p><p><a href=\"/\">Back to the bookmarks</a></p>", escape(&title), escape(why));
    let mut answer = page(&title, None, &body);
    *answer.status_mut() = status;
    answer
}

fn notice(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("<p class=\"notice\" role=\"status\">{}</p>", escape(text)) }
}

fn login_page(app: &App, why: &str) -> Outcome<Answer> {
    let first = app.db.read(accounts::is_new)?;
    let (title, lead, hidden, button, complete) = if first {
        (
            "Welcome",
            "<p>There is no account yet. The first one is yours, and it can make others.</p>",
            "<input type=\"hidden\" name=\"first\" value=\"1\">",
            "Make my account",
            "new-password",
        )
    } else {
        ("Log in", "", "", "Log in", "current-password")
    };
    let body = format!(
        "<section class=\"card narrow\"><h1>{title}</h1>{lead}{}<form method=\"post\" action=\"/login\">{hidden}\
         <label>Name<input name=\"name\" autocomplete=\"username\" required autofocus></label>\
         <label>Password<input type=\"password\" name=\"password\" autocomplete=\"{complete}\" minlength=\"8\" required></label>\
         <button>{button}</button></form></section>",
        notice(why)
    );
    Ok(page(title, None, &body))
}

fn users_page(user: &User, why: &str) -> Outcome<Answer> {
    if !user.admin {
        return Err(Fault::Refused(StatusCode::FORBIDDEN, "Administrators only."));
    }
    let body = format!(
        "<section class=\"card narrow\"><h1>A new user</h1>{}<form method=\"post\" action=\"/users\">\
         <label>Name<input name=\"name\" autocomplete=\"off\" required></label>\
         <label>Password<input type=\"password\" name=\"password\" autocomplete=\"new-password\" minlength=\"8\" required></label>\
         <button>Make the account</button></form></section>",
        notice(why)
    );
    Ok(page("Users", Some(user), &body))
}

fn home(app: &App, asked: &Asked) -> Outcome<Answer> {
    let user = asked.user()?;
    let q = asked.list_query();
    let (mut list, tags) = app.db.read(|c| Ok((store::list(c, user.id, &q)?, store::tags(c, user.id)?)))?;
    let more = list.len() > store::PAGE;
    list.truncate(store::PAGE);
    let mut body = format!(
        "<form class=\"search\" method=\"get\" action=\"/\" role=\"search\"><input type=\"search\" name=\"q\" value=\"{}\" \
         placeholder=\"Search titles, notes, tags\" aria-label=\"Search\"><button>Search</button></form><div class=\"columns\"><div>",
        escape(&q.words)
    );
    if !q.words.is_empty() || !q.tag.is_empty() || q.starred {
        let what = match (&*q.words, &*q.tag) {
            ("", "") => "with a star".to_owned(),
            ("", tag) => format!("tagged <b>{}</b>", escape(tag)),
            (words, _) => format!("for <b>{}</b>", escape(words)),
        };
        let n = if more { format!("more than {}", list.len()) } else { list.len().to_string() };
        let _ = write!(body, "<p class=\"found\">{n} {what} · <a href=\"/\">show everything</a></p>");
    }
    if list.is_empty() {
        let nothing = if q.words.is_empty() && q.tag.is_empty() && !q.starred && q.before.is_none() {
            "Nothing here yet. <a href=\"/new\">Add the first bookmark.</a>"
        } else {
            "Nothing was found. <a href=\"/\">Show everything.</a>"
        };
        let _ = write!(body, "<p class=\"empty\">{nothing}</p>");
    }
    body.push_str("<ol class=\"list\">");
    for b in &list {
        body.push_str(&item(b));
    }
    body.push_str("</ol>");
    if let Some(last) = list.last().filter(|_| more) {
        let _ = write!(body, "<p><a class=\"button\" href=\"{}\">Older</a></p>", escape(&link(&q, last.id)));
    }
    body.push_str("</div><aside><h2>Tags</h2><p class=\"tags\">");
    let _ =
        write!(body, "<a href=\"/?starred=1\"{}>★ starred</a>", if q.starred { " aria-current=\"true\"" } else { "" });
    for (tag, n) in &tags {
        let current = if *tag == q.tag { " aria-current=\"true\"" } else { "" };
        let _ = write!(body, "<a href=\"/?tag={}\"{current}>{} <small>{n}</small></a>", encode(tag), escape(tag));
    }
    body.push_str("</p></aside></div>");
    Ok(page("All", Some(user), &body))
}

fn link(q: &Query, before: i64) -> String {
    let mut to = format!("/?before={before}");
    for (name, value) in [("q", &q.words), ("tag", &q.tag)] {
        if !value.is_empty() {
            let _ = write!(to, "&{name}={}", encode(value));
        }
    }
    if q.starred {
        to.push_str("&starred=1");
    }
    to
}

fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, r)| r);
    rest.split(['/', '?', '#']).next().unwrap_or(rest)
}

/// The letter that stands for a host.
fn initial(host: &str) -> String {
    host.trim_start_matches("www.").chars().next().map_or_else(String::new, |c| c.to_uppercase().to_string())
}

/// A colour for a host, always the same: one of the style sheet's twelve (the content policy allows no styles in a page).
fn hue(host: &str) -> u32 {
    host.bytes().fold(7, |h: u32, b| h.wrapping_mul(31).wrapping_add(u32::from(b))) % 12
}

/// `21 Nov 2026`.
fn day(seconds: i64) -> String {
    // Of `Sat, 21 Nov 2026 15:26:49 GMT` the day.
    let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds.max(0) as u64));
    text.get(5..16).unwrap_or("").to_owned()
}

fn tag_links(tags: &str) -> String {
    tags.split(' ')
        .filter(|t| !t.is_empty())
        .fold(String::new(), |s, t| s + &format!(" <a class=\"tag\" href=\"/?tag={}\">{}</a>", encode(t), escape(t)))
}

fn item(b: &Bookmark) -> String {
    let note: String = b.note.chars().take(280).collect();
    let note = if note.is_empty() { String::new() } else { format!("<p class=\"note\">{}</p>", escape(&note)) };
    format!(
        "<li><span class=\"badge hue-{}\" aria-hidden=\"true\">{}</span><div>{}\
         <a class=\"title\" href=\"{}\" rel=\"noreferrer\">{}</a> <span class=\"host\">{}</span>{note}\
         <p class=\"meta\"><a class=\"more\" href=\"/b/{}\">{}</a>{}</p></div></li>",
        hue(host(&b.url)),
        escape(&initial(host(&b.url))),
        if b.starred { "<span class=\"star\" title=\"starred\">★</span> " } else { "" },
        escape(&b.url),
        escape(&b.title),
        escape(host(&b.url)),
        b.id,
        day(b.created),
        tag_links(&b.tags)
    )
}

fn editor(action: &str, e: &Entered, why: &str, button: &str) -> String {
    format!(
        "<section class=\"card\">{}<form method=\"post\" action=\"{action}\">\
         <label>Address<input type=\"url\" name=\"url\" value=\"{}\" placeholder=\"https://\" required></label>\
         <label>Title<input name=\"title\" value=\"{}\"></label>\
         <label>Tags<input name=\"tags\" value=\"{}\" placeholder=\"separated by spaces\"></label>\
         <label>Note<textarea name=\"note\" rows=\"6\">{}</textarea></label><button>{button}</button></form></section>",
        notice(why),
        escape(&e.url),
        escape(&e.title),
        escape(&e.tags),
        escape(&e.note)
    )
}

/// `26 KB`.
fn size(bytes: i64) -> String {
    match bytes {
        ..=999 => format!("{bytes} bytes"),
        1000..=999_999 => format!("{} KB", (bytes + 500) / 1000),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10),
    }
}

fn detail(b: &Bookmark, files: &[Attachment]) -> String {
    let mut html = format!(
        "<p class=\"back\"><a href=\"/\">‹ All bookmarks</a></p><h1>{}{}</h1><p><a href=\"{}\" rel=\"noreferrer\">{}</a></p>\
         <p class=\"meta\">added {}, changed {}{}</p>",
        if b.starred { "<span class=\"star\" title=\"starred\">★</span> " } else { "" },
        escape(&b.title),
        escape(&b.url),
        escape(&b.url),
        day(b.created),
        day(b.changed),
        tag_links(&b.tags)
    );
    html.push_str("<section class=\"card\"><h2>Files</h2><ul class=\"files\">");
    for f in files {
        let _ = write!(
            html,
            "<li><a href=\"/files/{}/{}\">{}</a> <small>{}</small></li>",
            f.id,
            encode(&f.name),
            escape(&f.name),
            size(f.size)
        );
    }
    let _ = write!(
        html,
        "</ul><form method=\"post\" action=\"/b/{0}/files\" enctype=\"multipart/form-data\"><label>Add a file (up to 8 MiB)\
         <input type=\"file\" name=\"file\" required></label><button>Upload</button></form></section>",
        b.id
    );
    let e = Entered { url: b.url.clone(), title: b.title.clone(), note: b.note.clone(), tags: b.tags.clone() };
    html.push_str(&editor(&format!("/b/{}", b.id), &e, "", "Save"));
    let star = if b.starred { "Take the star away" } else { "Give it a star" };
    let _ = write!(
        html,
        "<div class=\"actions\"><form method=\"post\" action=\"/b/{0}/star\"><button class=\"quiet\">{star}</button></form>\
         <form method=\"post\" action=\"/b/{0}/delete\"><button class=\"danger\">Delete</button></form></div>",
        b.id
    );
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_users_enter_stays_text() {
        let b = Bookmark {
            id: 1,
            url: "http://x/?a=\"><script>".into(),
            title: "<b>&'".into(),
            note: "</textarea><script>".into(),
            tags: "a\"b".into(),
            created: 0,
            changed: 86_400,
            starred: true,
        };
        let html = item(&b) + &detail(&b, &[]);
        assert!(!html.contains("<script>") && !html.contains("<b>") && !html.contains("a\"b"), "{html}");
        assert!(html.contains("01 Jan 1970") && html.contains("02 Jan 1970"), "{html}");
        assert_eq!(host("https://example.org/a"), "example.org");
        assert_eq!(
            (initial("www.arm.com").as_str(), size(999), size(26_100), size(1_250_000)),
            ("A", "999 bytes".into(), "26 KB".into(), "1.2 MB".into())
        );
    }
}
