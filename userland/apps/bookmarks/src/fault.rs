//! What can go wrong with a request.

use hyper::StatusCode;

/// A request that is not answered as asked.
#[derive(Debug)]
pub enum Fault {
    /// It was wrong, or not allowed; the text is for people.
    Refused(StatusCode, &'static str),
    /// Nobody is logged in.
    LoginNeeded,
    /// The database failed.
    Database(rusqlite::Error),
    /// A file failed.
    Io(std::io::Error),
    /// The writing thread is gone, or could not commit.
    Lost(String),
}

/// Short for results here.
pub type Outcome<T> = Result<T, Fault>;

impl From<rusqlite::Error> for Fault {
    fn from(e: rusqlite::Error) -> Self {
        match e {
            rusqlite::Error::QueryReturnedNoRows => {
                Self::Refused(StatusCode::NOT_FOUND, "There is no such thing here.")
            }
            e => Self::Database(e),
        }
    }
}

impl From<std::io::Error> for Fault {
    fn from(e: std::io::Error) -> Self {
        Self::Io(e)
    }
}

/// A request that was wrong.
pub fn bad<T>(why: &'static str) -> Outcome<T> {
    Err(Fault::Refused(StatusCode::BAD_REQUEST, why))
}

impl Fault {
    /// The answer's status and text. What is broken here goes to the log, not to the client.
    pub fn answer(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Refused(status, why) => (*status, why),
            Self::LoginNeeded => (StatusCode::UNAUTHORIZED, "Log in first."),
            Self::Database(rusqlite::Error::SqliteFailure(e, _)) if e.code == rusqlite::ErrorCode::DiskFull => {
                (StatusCode::INSUFFICIENT_STORAGE, "The disk is full.")
            }
            Self::Io(e) if e.kind() == std::io::ErrorKind::StorageFull => {
                (StatusCode::INSUFFICIENT_STORAGE, "The disk is full.")
            }
            other => {
                match other {
                    Self::Lost(why) => eprintln!("bookmarks: {why}"),
                    other => eprintln!("bookmarks: {other:?}"),
                }
                (StatusCode::INTERNAL_SERVER_ERROR, "Something failed here; the log says what.")
            }
        }
    }
}
