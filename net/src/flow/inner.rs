//! What happens to a connection under its lock: smoltcp's socket is fed, and what it does not decide is decided.

use super::port::Port;
use super::{DATA_TIMEOUT, ORPHAN_TIMEOUT, SYN_TIMEOUT, State, Status};
use crate::config::Hop;
use crate::listen::{self, SCALE};
use crate::packet::{self, Packet, SynOptions, Tuple};
use crate::tcp::{self, TcpOptions};
use abi::Errno;
use alloc::vec::Vec;
use smoltcp::iface::{Interface, PollResult, SocketHandle, SocketSet};
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
    /// The next byte that the owner will read.
    pub(super) unread: u32,
    /// The acknowledgement and the window (as it stood in the header) that were taken from the peer last.
    pub(super) heard: (u32, u16),
    /// How far the peer's windows have reached, and how they are scaled.
    edge: u32,
    pub(super) offered: SynOptions,
    /// Up to here bytes came out of order.
    pub(super) hole: Option<u32>,
    /// The window that was told last, as it stood in the header.
    window: u16,
}

/// What a connection's lock guards.
pub(super) struct Inner {
    pub(super) iface: Interface,
    pub(super) sockets: SocketSet<'static>,
    pub(super) handle: SocketHandle,
    pub(super) error: Option<Errno>,
    pub(super) options: TcpOptions,
    pub(super) seen: Seen,
    pub(super) tuple: Tuple,
    pub(super) mtu: usize,
    /// The owner has closed it.
    pub(super) orphan: bool,
    /// The owner wants nothing more from the peer (`SHUT_RD`).
    pub(super) deaf: bool,
    /// Since when something is owed by the peer.
    pub(super) owed_since: Option<u64>,
    pub(super) last_rx: u64,
    pub(super) probing: bool,
    /// Bytes read since the ring grew.
    pub(super) taken: usize,
    /// How often the ring for sending was full since it grew.
    pub(super) filled: u32,
    /// Nothing is taken for sending until the ring is empty.
    pub(super) draining: bool,
    /// Bytes held back (`cork`), and since when.
    pub(super) held: Vec<u8>,
    pub(super) held_since: Option<u64>,
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

fn is_synchronized(state: State) -> bool {
    !matches!(state, State::Closed | State::Listen | State::SynSent | State::SynReceived | State::TimeWait)
}

impl Inner {
    pub(super) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub(super) fn status(&mut self) -> Status {
        let error = self.error.is_some();
        let (deaf, draining, held) = (self.deaf, self.draining, self.held.len());
        let s = self.socket();
        let (readable, state) = (s.recv_queue(), s.state());
        let waits = draining && s.send_queue() > 0;
        let room = if s.may_send() && !waits { s.send_capacity().saturating_sub(s.send_queue() + held) } else { 0 };
        let ended = readable == 0 && (deaf || peer_finished(state));
        Status { state, readable, room, unsent: s.send_queue() + held, ended, error, capacity: s.send_capacity() }
    }

    /// Lets smoltcp take a segment. What it answers at once goes out; what can wait for other segments, acknowledgements above
    /// all, comes with [`Inner::poll`].
    pub(super) fn take(&mut self, segment: &[u8], now: u64, out: &mut Vec<Packet>) {
        if self.overruns(segment) {
            return;
        }
        let before = out.len();
        let state = self.socket().state();
        if let Some(ack) = self.hear(segment) {
            self.feed(ack.bytes(), now, out);
        }
        self.feed(segment, now, out);
        for p in &mut out[before..] {
            self.look_at(p);
        }
        self.after_segment(state, segment, now);
    }

    /// Lets smoltcp send what it has.
    pub(super) fn poll(&mut self, now: u64, out: &mut Vec<Packet>) {
        let before = out.len();
        let at = instant(now);
        // A segment at a time; the peer's window bounds how many.
        let mut port = Port { rx: None, out, mtu: self.mtu };
        while self.iface.poll_egress(at, &mut port, &mut self.sockets) == PollResult::SocketStateChanged {}
        for p in &mut out[before..] {
            self.look_at(p);
        }
        if self.forgotten(at) {
            let ack = self.bare_ack(self.seen.heard.0, self.seen.heard.1);
            if let Some(ack) = ack {
                self.feed(ack.bytes(), now, out);
            }
        }
    }

    pub(super) fn feed(&mut self, segment: &[u8], now: u64, out: &mut Vec<Packet>) {
        let mut port = Port { rx: Some(segment), out, mtu: self.mtu };
        self.iface.poll_ingress_single(instant(now), &mut port, &mut self.sockets);
    }

    /// Whether smoltcp would take bytes of a segment for which the ring has no room. From its SYN until its first acknowledgement
    /// after that it takes the window that the SYN told, which is not scaled, for a scaled one (RFC 7323, 2.2), and so believes in
    /// up to twice the ring. No peer that keeps to what it was told sends so much; who does is not heard.
    fn overruns(&mut self, rx: &[u8]) -> bool {
        let Some((t, len)) = self.segment(rx) else { return false };
        if len == 0 || matches!(self.socket().state(), State::Closed | State::Listen | State::SynSent) {
            return false;
        }
        let next = self.rcv_nxt();
        let s = self.socket();
        let room = (s.recv_capacity() - s.recv_queue()) as i32;
        let limit = self.seen.ack.wrapping_add(self.told()).wrapping_sub(next) as i32;
        let end = t.seq.wrapping_add(len as u32).wrapping_sub(next) as i32;
        limit > room && end > room
    }

    /// What the peer would say to acknowledge `ack`, numbered as smoltcp expects it.
    fn bare_ack(&mut self, ack: u32, window: u16) -> Option<Packet> {
        let seq = self.rcv_nxt();
        tcp::bare(&self.tuple.flipped(), seq, ack, packet::ACK, window, &[])
    }

    /// The number of the next byte that the peer is to send.
    pub(super) fn rcv_nxt(&mut self) -> u32 {
        let finished = u32::from(self.seen.fin.is_some());
        self.seen.unread.wrapping_add(self.socket().recv_queue() as u32 + finished)
    }

    /// Notes what a segment acknowledges. smoltcp takes nothing at all from a segment that lies outside the window, while
    /// valid acknowledgements must be heard all the same (RFC 9293, 3.10.7.4): two ends of which each has filled the
    /// other's window would never hear each other again. So what such a segment acknowledges, if it lies where a peer
    /// that is in step may have put it (from what was acknowledged last, to the window's edge), is returned as a segment that
    /// smoltcp takes.
    fn hear(&mut self, rx: &[u8]) -> Option<Packet> {
        let (t, len) = self.segment(rx)?;
        if t.flags & (packet::ACK | packet::SYN | packet::RST) != packet::ACK || !is_synchronized(self.socket().state())
        {
            return None;
        }
        let window = packet::be16(rx, rx.len() - len - t.header + 14)?;
        let next = self.rcv_nxt();
        let s = self.socket();
        let room = (s.recv_capacity() - s.recv_queue()) as u32;
        // From here on all numbers count from the next byte; the window is the one that was told last.
        let limit = self.seen.ack.wrapping_add(self.told()).wrapping_sub(next) as i32;
        let begin = t.seq.wrapping_sub(next) as i32;
        let end = begin.wrapping_add(len as i32);
        let taken = match (len, limit) {
            (0, 0) => begin == 0,
            (_, 0) => false,
            (0, _) => (0..limit).contains(&begin),
            _ => (0..limit).contains(&begin) || (0 < end && end <= limit),
        };
        let valid = t.seq.wrapping_add(len as u32).wrapping_sub(self.seen.ack) as i32 >= 0 && begin <= room as i32;
        let (ahead, wider) = (t.ack.wrapping_sub(self.seen.heard.0) as i32, window > self.seen.heard.1);
        if ahead < 0 || !(taken || valid) || t.ack.wrapping_sub(self.seen.snd_nxt) as i32 > 0 {
            return None;
        }
        if len > 0 && begin > 0 {
            self.seen.hole = Some(t.seq.wrapping_add(len as u32));
        }
        self.seen.heard = (t.ack, window);
        let edge = t.ack.wrapping_add(u32::from(window) << self.seen.offered.scale.unwrap_or(0));
        if edge.wrapping_sub(self.seen.edge) as i32 > 0 {
            self.seen.edge = edge;
        }
        if taken || !(ahead > 0 || wider) { None } else { self.bare_ack(t.ack, window) }
    }

    /// The window that smoltcp told last, in bytes.
    fn told(&mut self) -> u32 {
        let shift = self.own_shift();
        u32::from(self.seen.window) << shift
    }

    /// By how much smoltcp's windows are scaled: what the ring's size needs, not what the peer was told ([`SCALE`]).
    fn own_shift(&mut self) -> u32 {
        let bits = usize::BITS - self.socket().recv_capacity().leading_zeros();
        if self.seen.offered.scale.is_some() { bits.saturating_sub(16) } else { 0 }
    }

    /// Whether smoltcp has something to send and no time when to try: a retransmission that came up while the window was
    /// closed stops its timer, and the one that probes the window is started by a segment only.
    fn forgotten(&mut self, at: Instant) -> bool {
        let s = self.socket();
        s.send_queue() > 0 && is_synchronized(s.state()) && self.iface.poll_at(at, &self.sockets).is_none()
    }

    /// A segment's header, and how many bytes it carries.
    fn segment(&self, rx: &[u8]) -> Option<(packet::Tcp, usize)> {
        let header = if rx.first()? >> 4 == 4 { usize::from(rx[0] & 15) * 4 } else { 40 };
        let t = packet::parse_tcp(rx.get(header..)?)?;
        let len = rx.len() - header - t.header;
        Some((t, len))
    }

    /// Learns from the peer's SYN.
    pub(super) fn begin(&mut self, rx: &[u8]) {
        let Some((t, len)) = self.segment(rx) else { return };
        let at = rx.len() - len;
        let options = packet::parse_syn_options(&rx[at + 20 - t.header..at]);
        self.seen.unread = t.seq.wrapping_add(1);
        self.seen.offered = options;
        let window = packet::be16(rx, at - t.header + 14).unwrap_or(0);
        // Until the peer says otherwise: nothing is known yet of ours but its first number.
        self.seen.heard = (self.seen.snd_nxt, window);
        self.seen.edge = self.seen.snd_nxt.wrapping_add(window.into());
    }

    /// Notes what goes out, and puts a bare acknowledgement where it belongs: smoltcp goes back to the first byte that was
    /// not acknowledged when a retransmission is due, and numbers acknowledgements from there. The peer has that long since
    /// and must refuse them as old (RFC 9293, 3.10.7.4); with both ends retransmitting, neither would ever hear the other.
    /// Nor may it lie beyond the peer's window, where a probe of a closed window may have got to.
    pub(super) fn look_at(&mut self, p: &mut Packet) {
        let header = if p.bytes()[0] >> 4 == 4 { 20 } else { 40 };
        let Some(t) = packet::parse_tcp(&p.bytes()[header..]) else { return };
        let len = p.bytes().len() - header - t.header;
        let end = t.seq.wrapping_add(len as u32 + u32::from(t.flags & 1) + u32::from(t.flags >> 1 & 1));
        let ahead = end.wrapping_sub(self.seen.snd_nxt) as i32;
        if ahead > 0 || self.seen.snd_nxt == 0 {
            self.seen.snd_nxt = end;
        } else if ahead < 0 && end == t.seq && t.flags & packet::RST == 0 {
            let mut seq = self.seen.snd_nxt;
            if is_synchronized(self.socket().state()) && seq.wrapping_sub(self.seen.edge) as i32 > 0 {
                seq = self.seen.edge;
            }
            packet::put32(&mut p.bytes_mut()[header..], 4, seq);
        }
        self.seen.ack = t.ack;
        self.seen.window = packet::be16(p.bytes(), header + 14).unwrap_or(0);
        if t.flags & packet::SYN != 0 {
            listen::set_scale(&mut p.bytes_mut()[header + 20..header + t.header], SCALE);
        } else if self.seen.offered.scale.is_some() {
            let window = (self.told() >> SCALE).min(65535) as u16;
            packet::put16(&mut p.bytes_mut()[header..], 14, window);
        }
    }

    pub(super) fn fail(&mut self, e: Errno) {
        self.error.get_or_insert(e);
        self.socket().abort();
    }

    /// Notes what a segment did: errors, and what the peer still owes.
    fn after_segment(&mut self, before: State, rx: &[u8], now: u64) {
        let header = if rx[0] >> 4 == 4 { usize::from(rx[0] & 15) * 4 } else { 40 };
        let Some(t) = rx.get(header..).and_then(packet::parse_tcp) else { return };
        let state = self.socket().state();
        let synchronizing = is_synchronized(state) || state == State::SynReceived;
        if before == State::SynSent && t.flags & packet::SYN != 0 && synchronizing {
            self.begin(rx);
            // As smoltcp has it until it acknowledges the SYN.
            self.seen.ack = t.seq;
        }
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
