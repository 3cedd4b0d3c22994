//! Options that all kinds of sockets share (socket(7)), and the numbers.

use super::Caller;
use crate::tcp::{KeepAlive, TcpOptions};
use abi::{Errno, Result};
use alloc::vec::Vec;
use core::net::IpAddr;

/// `MSG_*`.
pub mod msg {
    /// `MSG_OOB`
    pub const OOB: u32 = 1;
    /// `MSG_PEEK`
    pub const PEEK: u32 = 2;
    /// `MSG_CTRUNC`
    pub const CTRUNC: u32 = 8;
    /// `MSG_TRUNC`
    pub const TRUNC: u32 = 0x20;
    /// `MSG_DONTWAIT`
    pub const DONTWAIT: u32 = 0x40;
    /// `MSG_EOR`
    pub const EOR: u32 = 0x80;
    /// `MSG_WAITALL`
    pub const WAITALL: u32 = 0x100;
    /// `MSG_ERRQUEUE`
    pub const ERRQUEUE: u32 = 0x2000;
    /// `MSG_MORE`
    pub const MORE: u32 = 0x8000;
    /// `MSG_NOSIGNAL`
    pub const NOSIGNAL: u32 = 0x4000;
    /// `MSG_WAITFORONE`
    pub const WAITFORONE: u32 = 0x1_0000;
    /// `MSG_CMSG_CLOEXEC`
    pub const CMSG_CLOEXEC: u32 = 0x4000_0000;
}

/// Levels.
pub mod level {
    /// `SOL_SOCKET`
    pub const SOCKET: u32 = 1;
    /// `IPPROTO_IP`
    pub const IP: u32 = 0;
    /// `IPPROTO_TCP`
    pub const TCP: u32 = 6;
    /// `IPPROTO_IPV6`
    pub const IPV6: u32 = 41;
}

const SEC: u64 = 1_000_000_000;
/// `net.core.rmem_max` and `wmem_max`.
const BUFFER_MAX: usize = 4 << 20;

/// A socket's options.
#[derive(Clone, Debug)]
pub struct Common {
    /// `SO_REUSEADDR`
    pub reuse_addr: bool,
    /// `SO_REUSEPORT`
    pub reuse_port: bool,
    /// `SO_BROADCAST`
    pub broadcast: bool,
    /// `SO_PASSCRED`
    pub pass_cred: bool,
    /// `SO_TIMESTAMP`
    pub timestamp: bool,
    /// `SO_LINGER` in seconds.
    pub linger: Option<u32>,
    /// `SO_RCVTIMEO` in nanoseconds.
    pub rcv_timeout: Option<u64>,
    /// `SO_SNDTIMEO` in nanoseconds.
    pub snd_timeout: Option<u64>,
    /// `SO_RCVBUF`, if set.
    pub rcvbuf: Option<usize>,
    /// `SO_SNDBUF`, if set.
    pub sndbuf: Option<usize>,
    /// `SO_KEEPALIVE`
    pub keepalive: bool,
    /// Its times.
    pub times: KeepAlive,
    /// `TCP_NODELAY`
    pub nodelay: bool,
    /// `TCP_CORK`
    pub cork: bool,
    /// `TCP_QUICKACK`
    pub quickack: bool,
    /// `TCP_USER_TIMEOUT` in nanoseconds.
    pub user_timeout: Option<u64>,
    /// `IPV6_V6ONLY`
    pub v6only: bool,
    /// `IP_MULTICAST_TTL`
    pub multicast_ttl: u8,
    /// `IPV6_MULTICAST_HOPS`
    pub multicast_hops: u8,
    /// `IP_TTL`, `IPV6_UNICAST_HOPS`
    pub ttl: Option<u8>,
    /// `IP_TOS`
    pub tos: u8,
    /// `IP_PKTINFO`, `IPV6_RECVPKTINFO`
    pub pktinfo: bool,
    /// `IP_RECVTTL`, `IPV6_RECVHOPLIMIT`
    pub recv_ttl: bool,
    /// `IPV6_2292HOPLIMIT`
    pub recv_ttl_old: bool,
    /// `IP_HDRINCL`
    pub header_included: bool,
    /// The interface it is bound to.
    pub bound: u32,
    /// Options that are remembered and have no effect (priority, mark, low-water marks, path-MTU discovery …).
    pub other: Vec<((u32, u32), u32)>,
}

impl Default for Common {
    fn default() -> Self {
        Common {
            reuse_addr: false,
            reuse_port: false,
            broadcast: false,
            pass_cred: false,
            timestamp: false,
            linger: None,
            rcv_timeout: None,
            snd_timeout: None,
            rcvbuf: None,
            sndbuf: None,
            keepalive: false,
            times: KeepAlive { idle: 7200 * SEC, interval: 75 * SEC, count: 9 },
            nodelay: false,
            cork: false,
            multicast_ttl: 1,
            multicast_hops: 1,
            quickack: false,
            user_timeout: None,
            v6only: false,
            ttl: None,
            tos: 0,
            pktinfo: false,
            recv_ttl: false,
            recv_ttl_old: false,
            header_included: false,
            bound: 0,
            other: Vec::new(),
        }
    }
}

fn int(v: &[u8]) -> Result<u32> {
    match v {
        [a, b, c, d, ..] => Ok(u32::from_ne_bytes([*a, *b, *c, *d])),
        // Linux takes a byte for the options of IP.
        [a] => Ok((*a).into()),
        _ => Err(Errno::EINVAL),
    }
}

fn time(v: &[u8]) -> Result<Option<u64>> {
    let word =
        |at: usize| v.get(at..at + 8).and_then(|b| b.try_into().ok()).map(i64::from_ne_bytes).ok_or(Errno::EINVAL);
    let (sec, usec) = (word(0)?, word(8)?);
    if !(0..1_000_000).contains(&usec) {
        return Err(Errno::EDOM);
    }
    let ns = (sec.max(0) as u64).saturating_mul(SEC).saturating_add(usec as u64 * 1000);
    Ok((ns > 0).then_some(ns))
}

fn time_bytes(ns: Option<u64>) -> Vec<u8> {
    let ns = ns.unwrap_or(0);
    [(ns / SEC).to_ne_bytes(), (ns % SEC / 1000).to_ne_bytes()].concat()
}

/// A buffer's size as `SO_RCVBUF` sets it: Linux doubles what it is told.
fn buffer(asked: u32, force: bool) -> usize {
    let most = if force { usize::MAX / 4 } else { BUFFER_MAX / 2 };
    ((asked as usize).min(most) * 2).clamp(4096, 64 << 20)
}

impl Common {
    /// Sets an option of any level. `ENOPROTOOPT`, `EINVAL`, `EDOM`, `EPERM`.
    pub fn set(&mut self, level: u32, name: u32, v: &[u8], who: &Caller) -> Result<()> {
        match (level, name) {
            (level::SOCKET, 20 | 66) => self.rcv_timeout = time(v)?,
            (level::SOCKET, 21 | 67) => self.snd_timeout = time(v)?,
            (level::SOCKET, 13) => {
                let on = int(v)? != 0;
                self.linger = on.then_some(int(v.get(4..).ok_or(Errno::EINVAL)?)?);
            }
            (level::TCP, 13) => {
                // TCP_CONGESTION: there is one.
                let name = v.split(|c| *c == 0).next().unwrap_or(v);
                return if name == b"reno" { Ok(()) } else { Err(Errno::ENOENT) };
            }
            // Memberships: interfaces take all groups (there is no IGMP to announce them).
            (level::IP, 35 | 36) | (level::IPV6, 20 | 21) if v.len() >= 8 => {}
            _ => {
                let n = int(v)?;
                return self.set_int(level, name, n, who);
            }
        }
        Ok(())
    }

    fn set_int(&mut self, level: u32, name: u32, n: u32, who: &Caller) -> Result<()> {
        let on = n != 0;
        match (level, name) {
            (level::SOCKET, 2) => self.reuse_addr = on,
            (level::SOCKET, 15) => self.reuse_port = on,
            (level::SOCKET, 6) => self.broadcast = on,
            (level::SOCKET, 9) => self.keepalive = on,
            (level::SOCKET, 16) => self.pass_cred = on,
            (level::SOCKET, 29) => self.timestamp = on,
            (level::SOCKET, 7) => self.sndbuf = Some(buffer(n, false)),
            (level::SOCKET, 8) => self.rcvbuf = Some(buffer(n, false)),
            (level::SOCKET, 32 | 33) if !who.privileged => return Err(Errno::EPERM),
            (level::SOCKET, 32) => self.sndbuf = Some(buffer(n, true)),
            (level::SOCKET, 33) => self.rcvbuf = Some(buffer(n, true)),
            (level::SOCKET, 3 | 4 | 17 | 30 | 38 | 39) => return Err(Errno::ENOPROTOOPT),
            (level::SOCKET, 1 | 5 | 10 | 11 | 12 | 14 | 18 | 34 | 36 | 40 | 43..=49 | 60) => {
                self.remember(level, name, n);
            }
            (level::IP, 1) | (level::IPV6, 67) => self.tos = n as u8,
            (level::IP, 2) | (level::IPV6, 16) => {
                self.ttl = match n as i32 {
                    -1 => None,
                    1..=255 => Some(n as u8),
                    _ => return Err(Errno::EINVAL),
                }
            }
            (level::IP, 3) => self.header_included = on,
            (level::IP, 8) | (level::IPV6, 49) => self.pktinfo = on,
            (level::IP, 12) | (level::IPV6, 51) => self.recv_ttl = on,
            (level::IPV6, 8) => self.recv_ttl_old = on,
            // IP_RECVERR, IPV6_RECVERR: there are no error queues (`docs/limits.md`).
            (level::IP, 11) | (level::IPV6, 25) if on => return Err(Errno::ENOPROTOOPT),
            (level::IP, 10 | 11 | 13 | 15 | 24 | 32 | 34 | 49) => self.remember(level, name, n),
            (level::IPV6, 17 | 19 | 23 | 24 | 25 | 66 | 70 | 78) => self.remember(level, name, n),
            (level::IPV6, 26) => self.v6only = on,
            (level::IP, 33) | (level::IPV6, 18) => {
                let hops = match n {
                    u32::MAX => 1,
                    0..=255 => n as u8,
                    _ => return Err(Errno::EINVAL),
                };
                if level == level::IP {
                    self.multicast_ttl = hops;
                } else {
                    self.multicast_hops = hops;
                }
            }
            (level::TCP, 1) => self.nodelay = on,
            (level::TCP, 3) => self.cork = on,
            (level::TCP, 4) if (1..=32767).contains(&n) => self.times.idle = u64::from(n) * SEC,
            (level::TCP, 5) if (1..=32767).contains(&n) => self.times.interval = u64::from(n) * SEC,
            (level::TCP, 6) if (1..=127).contains(&n) => self.times.count = n,
            (level::TCP, 4..=6) => return Err(Errno::EINVAL),
            (level::TCP, 12) => self.quickack = on,
            (level::TCP, 18) => self.user_timeout = on.then_some(u64::from(n) * 1_000_000),
            (level::TCP, 2 | 7 | 8 | 9 | 10 | 23 | 25 | 30) => self.remember(level, name, n),
            _ => return Err(Errno::ENOPROTOOPT),
        }
        Ok(())
    }

    fn remember(&mut self, level: u32, name: u32, n: u32) {
        self.other.retain(|o| o.0 != (level, name));
        self.other.push(((level, name), n));
    }

    /// Reads an option. `ENOPROTOOPT`.
    pub fn get(&self, level: u32, name: u32) -> Result<Vec<u8>> {
        let n = match (level, name) {
            (level::SOCKET, 20 | 66) => return Ok(time_bytes(self.rcv_timeout)),
            (level::SOCKET, 21 | 67) => return Ok(time_bytes(self.snd_timeout)),
            (level::SOCKET, 13) => {
                let pair = [u32::from(self.linger.is_some()), self.linger.unwrap_or(0)];
                return Ok(pair.map(u32::to_ne_bytes).concat());
            }
            (level::TCP, 13) => return Ok(b"reno\0\0\0\0\0\0\0\0\0\0\0\0".to_vec()),
            (level::SOCKET, 2) => self.reuse_addr.into(),
            (level::SOCKET, 15) => self.reuse_port.into(),
            (level::SOCKET, 6) => self.broadcast.into(),
            (level::SOCKET, 9) => self.keepalive.into(),
            (level::SOCKET, 16) => self.pass_cred.into(),
            (level::SOCKET, 29) => self.timestamp.into(),
            (level::SOCKET, 7) => self.sndbuf.unwrap_or(64 << 10) as u32,
            (level::SOCKET, 8) => self.rcvbuf.unwrap_or(64 << 10) as u32,
            (level::SOCKET, 18) => 1,
            (level::IP, 1) | (level::IPV6, 67) => self.tos.into(),
            (level::IP, 2) | (level::IPV6, 16) => self.ttl.unwrap_or(64).into(),
            (level::IP, 3) => self.header_included.into(),
            (level::IP, 8) | (level::IPV6, 49) => self.pktinfo.into(),
            (level::IP, 12) | (level::IPV6, 51) => self.recv_ttl.into(),
            (level::IPV6, 26) => self.v6only.into(),
            (level::IP, 33) => self.multicast_ttl.into(),
            (level::IPV6, 18) => self.multicast_hops.into(),
            (level::TCP, 1) => self.nodelay.into(),
            (level::TCP, 3) => self.cork.into(),
            (level::TCP, 4) => (self.times.idle / SEC) as u32,
            (level::TCP, 5) => (self.times.interval / SEC) as u32,
            (level::TCP, 6) => self.times.count,
            (level::TCP, 12) => self.quickack.into(),
            (level::TCP, 18) => (self.user_timeout.unwrap_or(0) / 1_000_000) as u32,
            (level::TCP, 2) => 1460,
            (level::SOCKET, 1 | 5 | 10 | 11 | 12 | 14 | 34 | 36 | 40 | 43..=49 | 60)
            | (level::IP, 10 | 11 | 13 | 15 | 24 | 32 | 34 | 49)
            | (level::IPV6, 17 | 19 | 23 | 24 | 25 | 66 | 70 | 78)
            | (level::TCP, 7 | 8 | 9 | 10 | 23 | 25 | 30) => {
                self.other.iter().find(|o| o.0 == (level, name)).map_or(0, |o| o.1)
            }
            _ => return Err(Errno::ENOPROTOOPT),
        };
        Ok(n.to_ne_bytes().to_vec())
    }

    /// How many hops a packet to `to` may take.
    pub fn hops(&self, to: IpAddr) -> u8 {
        match to {
            IpAddr::V4(a) if a.is_multicast() => self.multicast_ttl,
            IpAddr::V6(a) if a.is_multicast() => self.multicast_hops,
            _ => self.ttl.unwrap_or(64),
        }
    }

    /// The interface that `IPV6_MULTICAST_IF` chose; 0: none.
    pub fn multicast_interface(&self) -> u32 {
        self.other.iter().find(|o| o.0 == (level::IPV6, 17)).map_or(0, |o| o.1)
    }

    /// What a connection is told.
    pub fn tcp(&self) -> TcpOptions {
        TcpOptions {
            nodelay: self.nodelay,
            cork: self.cork,
            quickack: self.quickack,
            keepalive: self.keepalive.then_some(self.times),
            user_timeout: self.user_timeout,
            rcvbuf: self.rcvbuf,
            sndbuf: self.sndbuf,
            ttl: self.ttl,
            bound: self.bound,
            queues: None,
        }
    }
}
