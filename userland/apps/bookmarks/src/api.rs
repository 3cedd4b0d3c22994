//! The JSON interface.
//!
//! | call | |
//! | --- | --- |
//! | `POST /api/register`, `/api/login` `{name, password}` | a token, for `Authorization: Bearer` |
//! | `GET /api/bookmarks?q=&tag=&starred=&before=` | the newest first, 50 at a time; `next` is the next `before` |
//! | `POST /api/bookmarks` `{url, title, note, tags}` | 201 and the bookmark |
//! | `GET`, `PUT`, `DELETE /api/bookmarks/ID` | |
//! | `PUT /api/bookmarks/ID/files/NAME` | the body is the file |
//! | `GET /api/files/ID` | |

use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::accounts;
use crate::fault::{Fault, Outcome, bad};
use crate::form;
use crate::http::{Answer, App, Asked, reply};
use crate::store::{self, Entered};

const JSON: &str = "application/json";

fn say(status: StatusCode, value: &impl Serialize) -> Answer {
    reply(status, JSON, serde_json::to_vec(value).unwrap_or_default())
}

/// An error.
pub fn failed(status: StatusCode, why: &str) -> Answer {
    say(status, &json!({ "error": why }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Credentials {
    name: String,
    password: String,
}

fn read<'a, T: Deserialize<'a>>(asked: &'a Asked) -> Outcome<T> {
    serde_json::from_slice(&asked.body).or_else(|_| bad("The body is not the JSON that is expected here."))
}

/// Answers a request below `/api/`.
pub async fn answer(app: &App, asked: &Asked) -> Outcome<Answer> {
    let path: Vec<&str> = asked.path.trim_start_matches("/api/").split('/').collect();
    let method = &asked.method;
    match (method, path.as_slice()) {
        (&Method::POST, ["register"]) => {
            let who: Credentials = read(asked)?;
            let id = accounts::register(&app.db, asked.user.as_ref(), &who.name, &who.password).await?;
            let token = accounts::begin(&app.db, id).await?;
            Ok(say(StatusCode::CREATED, &json!({ "token": token })))
        }
        (&Method::POST, ["login"]) => {
            let who: Credentials = read(asked)?;
            let token = accounts::login(&app.db, &who.name, &who.password).await?;
            Ok(say(StatusCode::OK, &json!({ "token": token })))
        }
        (_, ["bookmarks"]) => all(app, asked).await,
        (_, ["bookmarks", id]) => one(app, asked, number(id)?).await,
        (&Method::PUT, ["bookmarks", id, "files", name]) => {
            let user = asked.user()?.id;
            let file = app.keep_file(user, number(id)?, &form::decode(name), asked.body.clone()).await?;
            Ok(say(StatusCode::CREATED, &json!({ "id": file })))
        }
        (&Method::GET, ["files", id]) => app.send_file(asked.user()?.id, number(id)?).await,
        _ => Err(Fault::Refused(StatusCode::NOT_FOUND, "There is no such call.")),
    }
}

fn number(text: &str) -> Outcome<i64> {
    text.parse().or_else(|_| bad("That is not a number."))
}

async fn all(app: &App, asked: &Asked) -> Outcome<Answer> {
    let user = asked.user()?.id;
    match asked.method {
        Method::GET => {
            let mut list = app.db.read(|c| store::list(c, user, &asked.list_query()))?;
            let more = list.len() > store::PAGE;
            list.truncate(store::PAGE);
            let next = list.last().filter(|_| more).map_or(Value::Null, |b| b.id.into());
            Ok(say(StatusCode::OK, &json!({ "bookmarks": list, "next": next })))
        }
        Method::POST => {
            let e = read::<Entered>(asked)?.checked()?;
            let added = app.db.write(move |c| store::get(c, user, store::add(c, user, &e)?)).await?;
            Ok(say(StatusCode::CREATED, &added))
        }
        _ => Err(NOT_ALLOWED),
    }
}

const NOT_ALLOWED: Fault = Fault::Refused(StatusCode::METHOD_NOT_ALLOWED, "That cannot be done here.");

async fn one(app: &App, asked: &Asked, id: i64) -> Outcome<Answer> {
    let user = asked.user()?.id;
    match asked.method {
        Method::GET => {
            let (b, files) = app.db.read(|c| Ok((store::get(c, user, id)?, store::files(c, id)?)))?;
            Ok(say(StatusCode::OK, &json!({ "bookmark": b, "files": files })))
        }
        Method::PUT => {
            let e = read::<Entered>(asked)?.checked()?;
            let changed = app
                .db
                .write(move |c| {
                    store::change(c, user, id, &e)?;
                    store::get(c, user, id)
                })
                .await?;
            Ok(say(StatusCode::OK, &changed))
        }
        Method::DELETE => {
            app.remove(user, id).await?;
            Ok(reply(StatusCode::NO_CONTENT, JSON, ""))
        }
        _ => Err(NOT_ALLOWED),
    }
}
