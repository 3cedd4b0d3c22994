//! Error numbers.

use core::fmt;

/// A Linux error number (`errno(3)`), 1 to 4095. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(u16);

macro_rules! errnos {
    ($($name:ident)*) => {
        impl Errno {
            $(
                #[doc = concat!("`", stringify!($name), "`")]
                pub const $name: Errno = Errno(linux_raw_sys::errno::$name as u16);
            )*

            /// Its symbolic name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Errno::$name => stringify!($name),)*
                    Errno::ERESTARTSYS => "ERESTARTSYS",
                    Errno::ERESTARTNOINTR => "ERESTARTNOINTR",
                    Errno::ERESTARTNOHAND => "ERESTARTNOHAND",
                    Errno::ERESTART_RESTARTBLOCK => "ERESTART_RESTARTBLOCK",
                    _ => "E?",
                }
            }
        }
    };
}

errnos! {
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY
    EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK
    EPIPE EDOM ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP ENOMSG EIDRM ECHRNG EL2NSYNC EL3HLT
    EL3RST ELNRNG EUNATCH ENOCSI EL2HLT EBADE EBADR EXFULL ENOANO EBADRQC EBADSLT EBFONT ENOSTR ENODATA ETIME
    ENOSR ENONET ENOPKG EREMOTE ENOLINK EADV ESRMNT ECOMM EPROTO EMULTIHOP EDOTDOT EBADMSG EOVERFLOW ENOTUNIQ
    EBADFD EREMCHG ELIBACC ELIBBAD ELIBSCN ELIBMAX ELIBEXEC EILSEQ ESTRPIPE EUSERS ENOTSOCK EDESTADDRREQ
    EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP EPFNOSUPPORT EAFNOSUPPORT
    EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ENETRESET ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN
    ESHUTDOWN ETOOMANYREFS ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH EALREADY EINPROGRESS ESTALE EUCLEAN
    ENOTNAM ENAVAIL EISNAM EREMOTEIO EDQUOT ENOMEDIUM EMEDIUMTYPE ECANCELED ENOKEY EKEYEXPIRED EKEYREVOKED
    EKEYREJECTED EOWNERDEAD ENOTRECOVERABLE ERFKILL EHWPOISON
}

impl Errno {
    /// Another name of `EAGAIN`.
    pub const EWOULDBLOCK: Errno = Errno::EAGAIN;
    /// Another name of `EOPNOTSUPP`.
    pub const ENOTSUP: Errno = Errno::EOPNOTSUPP;

    /// Never seen by user space: the call was interrupted; it is restarted if the handler has `SA_RESTART`, else `EINTR`.
    pub const ERESTARTSYS: Errno = Errno(512);
    /// Never seen by user space: always restarted.
    pub const ERESTARTNOINTR: Errno = Errno(513);
    /// Never seen by user space: restarted if no handler runs, else `EINTR`.
    pub const ERESTARTNOHAND: Errno = Errno(514);
    /// Never seen by user space: restarted through `restart_syscall` if no handler runs, else `EINTR`.
    pub const ERESTART_RESTARTBLOCK: Errno = Errno(516);

    /// The error with this number, if it is one.
    pub fn from_raw(raw: i32) -> Option<Errno> {
        (1..4096).contains(&raw).then_some(Errno(raw as u16))
    }

    /// The number.
    pub const fn raw(self) -> i32 {
        self.0 as i32
    }

    /// What a system call returns for it: the negated number.
    pub const fn to_return(self) -> i64 {
        -(self.0 as i64)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Errno;

    #[test]
    fn returns_are_negative() {
        assert_eq!(Errno::EPERM.to_return(), -1);
        assert_eq!(Errno::ENOSYS.to_return(), -38);
        assert_eq!(Errno::from_raw(0), None);
        assert_eq!(Errno::from_raw(110), Some(Errno::ETIMEDOUT));
    }
}
