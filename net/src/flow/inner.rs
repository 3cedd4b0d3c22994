//! What happens to a connection under its lock: smoltcp's socket is fed, and what it does not decide is decided.

use super::port::Port;
use super::{DATA_TIMEOUT, ORPHAN_TIMEOUT, SYN_TIMEOUT, State, Status};
use crate::config::Hop;
use crate::packet::{self, Packet};
use crate::tcp::TcpOptions;
use abi::Errno;
use alloc::vec::Vec;
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::Socket;
use smoltcp::time::{Duration, Instant};

/// What the outside saw of the connection's sequence numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// After the last byte (or flag) sent.
    pub(super) snd_nxt: u32,
    /// The last acknowledgement sent.
    pub(super) ack: u32,
    /// After the peer's FIN, once it came.
    pub(super) fin: Option<u32>,
}

/// What a connection's lock guards.
pub(super) struct Inner {
    pub(super) iface: Interface,
    pub(super) sockets: SocketSet<'static>,
    pub(super) handle: SocketHandle,
    pub(super) error: Option<Errno>,
    pub(super) options: TcpOptions,
    pub(super) seen: Seen,
    pub(super) mtu: usize,
    /// The owner has closed it.
    pub(super) orphan: bool,
    /// The owner wants nothing more from the peer (`SHUT_RD`).
    pub(super) deaf: bool,
    /// Since when something is owed by the peer.
    pub(super) owed_since: Option<u64>,
    pub(super) last_rx: u64,
    pub(super) probing: bool,
    pub(super) hop: Option<(u64, Hop)>,
    pub(super) gone: bool,
}

/// A time as smoltcp counts.
pub(super) fn instant(now_ns: u64) -> Instant {
    Instant::from_micros((now_ns / 1000) as i64)
}

fn peer_finished(state: State) -> bool {
    matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait | State::Closed)
}

impl Inner {
    pub(super) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub(super) fn status(&mut self) -> Status {
        let error = self.error.is_some();
        let deaf = self.deaf;
        let s = self.socket();
        let (readable, state) = (s.recv_queue(), s.state());
        let room = if s.may_send() { s.send_capacity() - s.send_queue() } else { 0 };
        let ended = readable == 0 && (deaf || peer_finished(state));
        Status { state, readable, room, unsent: s.send_queue(), ended, error, capacity: s.send_capacity() }
    }

    /// Lets smoltcp take a segment and send what it has.
    pub(super) fn poll(&mut self, rx: Option<&[u8]>, now: u64, out: &mut Vec<Packet>) {
        let at = instant(now);
        let ingress = rx.is_some();
        let mut port = Port { rx, out, mtu: self.mtu };
        if ingress {
            self.iface.poll_ingress_single(at, &mut port, &mut self.sockets);
        }
        self.iface.poll_egress(at, &mut port, &mut self.sockets);
        for p in out.iter_mut() {
            self.look_at(p);
        }
    }

    /// Notes what goes out, and puts a bare acknowledgement where it belongs: smoltcp goes back to the first byte that was
    /// not acknowledged when a retransmission is due, and numbers acknowledgements from there. The peer has that long since
    /// and must refuse them as old (RFC 9293, 3.10.7.4); with both ends retransmitting, neither would ever hear the other.
    fn look_at(&mut self, p: &mut Packet) {
        let header = if p.bytes()[0] >> 4 == 4 { 20 } else { 40 };
        let Some(t) = packet::parse_tcp(&p.bytes()[header..]) else { return };
        let len = p.bytes().len() - header - t.header;
        let end = t.seq.wrapping_add(len as u32 + u32::from(t.flags & 1) + u32::from(t.flags >> 1 & 1));
        let ahead = end.wrapping_sub(self.seen.snd_nxt) as i32;
        if ahead > 0 || self.seen.snd_nxt == 0 {
            self.seen.snd_nxt = end;
        } else if ahead < 0 && end == t.seq && t.flags & packet::RST == 0 {
            packet::put32(&mut p.bytes_mut()[header..], 4, self.seen.snd_nxt);
        }
        self.seen.ack = t.ack;
    }

    pub(super) fn fail(&mut self, e: Errno) {
        self.error.get_or_insert(e);
        self.socket().abort();
    }

    /// Notes what a segment did: errors, and what the peer still owes.
    pub(super) fn after_segment(&mut self, before: State, rx: &[u8], now: u64) {
        let header = if rx[0] >> 4 == 4 { usize::from(rx[0] & 15) * 4 } else { 40 };
        let Some(t) = rx.get(header..).and_then(packet::parse_tcp) else { return };
        let state = self.socket().state();
        if t.flags & packet::RST != 0 && state != before && matches!(state, State::Closed | State::Listen) {
            self.error = match before {
                State::SynSent => Some(Errno::ECONNREFUSED),
                State::CloseWait => Some(Errno::EPIPE),
                State::TimeWait | State::LastAck | State::Closing | State::Closed => self.error,
                _ => Some(Errno::ECONNRESET),
            };
            if state == State::Listen {
                self.socket().close();
            }
        }
        if t.flags & packet::FIN != 0 && peer_finished(state) && self.seen.fin.is_none() {
            self.seen.fin = Some(t.seq.wrapping_add((rx.len() - header - t.header) as u32 + 1));
        }
        self.last_rx = now;
        if self.owed_since.is_some() {
            self.owed_since = Some(now);
        }
        if self.probing {
            self.probing = false;
            self.socket().set_keep_alive(None);
        }
        // Nobody will read it: say so (RFC 1122, 4.2.2.13).
        if self.orphan && self.socket().recv_queue() > 0 {
            self.socket().abort();
        }
    }

    /// Gives up what has waited too long; when to look again.
    pub(super) fn patience(&mut self, now: u64) -> (Option<u64>, bool) {
        let s = self.socket();
        let (state, queued) = (s.state(), s.send_queue());
        let owed = queued > 0
            || matches!(state, State::SynSent | State::SynReceived | State::FinWait1 | State::LastAck | State::Closing);
        if state == State::Closed {
            return (None, false);
        }
        if owed || (self.orphan && state == State::FinWait2) {
            let since = *self.owed_since.get_or_insert(now);
            let limit = match state {
                State::SynSent | State::SynReceived => self.options.user_timeout.unwrap_or(SYN_TIMEOUT),
                _ if self.orphan => ORPHAN_TIMEOUT,
                _ => self.options.user_timeout.unwrap_or(DATA_TIMEOUT),
            };
            if now >= since + limit {
                self.fail(Errno::ETIMEDOUT);
                return (None, true);
            }
            return (Some(since + limit), false);
        }
        self.owed_since = None;
        let Some(ka) =
            self.options.keepalive.filter(|_| matches!(state, State::Established | State::CloseWait | State::FinWait2))
        else {
            return (None, false);
        };
        let first = self.last_rx + ka.idle;
        if now < first {
            return (Some(first), false);
        }
        if now >= first + ka.interval * u64::from(ka.count) {
            self.fail(Errno::ETIMEDOUT);
            return (None, true);
        }
        if !self.probing {
            self.probing = true;
            self.socket().set_keep_alive(Some(Duration::from_micros(ka.interval / 1000)));
            return (Some(first + ka.interval * u64::from(ka.count)), true);
        }
        (Some(first + ka.interval * u64::from(ka.count)), false)
    }

    pub(super) fn next_deadline(&mut self, now: u64) -> Option<u64> {
        let at = self.iface.poll_at(instant(now), &self.sockets)?;
        // smoltcp counts microseconds; rounding up keeps a deadline from coming too early. What it wants at once and did
        // not do when polled (a closed window) is asked again soon, not in a loop.
        Some(((at.total_micros().max(0) as u64 + 1) * 1000).max(now + 1_000_000))
    }
}
