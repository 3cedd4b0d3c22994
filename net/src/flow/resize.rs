//! Rings that grow.
//!
//! smoltcp's rings cannot be replaced while its socket lives, but the socket can: a connection through which nothing is under
//! way is wholly described by its two next numbers, the peer's window and what its SYN offered. So a fresh socket is taken
//! through a handshake with a peer that is made up here, whose numbers are those, and takes the old one's place. What is
//! forgotten is the congestion window and the round-trip time. The window's scale stays what the peer was told at the
//! beginning ([`crate::listen::SCALE`]); windows are translated on their way out.
//!
//! **When.** The ring for sending is tiny until more than fits is sent, and then large enough for twice that; one that was
//! full at times grows when it happens to be empty, and one that was full often is let run empty for it. The ring for
//! receiving grows fourfold when four times its size went through it. Nothing grows whose size its owner has set, nor beyond
//! [`Stack::largest_buffer`].

use super::inner::{Inner, instant};
use super::port::Port;
use super::{Flow, State};
use crate::Stack;
use crate::listen::{seed_for, synthesize};
use crate::packet::{self, Packet, Tuple};
use crate::tcp::{self, TcpOptions};
use abi::{Errno, Result};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer};
use smoltcp::wire::{HardwareAddress, IpCidr};

/// A ring that was so often full is let run empty, so that it can grow.
const OFTEN: u32 = 32;
/// Up to here.
const ENOUGH: usize = 256 << 10;

fn zeroed(len: usize) -> Result<Vec<u8>> {
    let mut ring = Vec::new();
    ring.try_reserve_exact(len).map_err(|_| Errno::ENOBUFS)?;
    ring.resize(len, 0);
    Ok(ring)
}

impl Inner {
    /// A closed socket in an interface, with rings of these sizes (receiving, sending). `ENOBUFS`.
    pub(super) fn fresh(
        tuple: Tuple,
        options: &TcpOptions,
        mtu: usize,
        seed: u64,
        now: u64,
        [rcv, snd]: [usize; 2],
    ) -> Result<(Interface, SocketSet<'static>, SocketHandle)> {
        let (rx, tx) = (zeroed(rcv)?, zeroed(snd)?);
        let mut socket = Socket::new(SocketBuffer::new(rx), SocketBuffer::new(tx));
        socket.set_nagle_enabled(!options.nodelay);
        socket.set_congestion_control(CongestionControl::Reno);
        if options.quickack {
            socket.set_ack_delay(None);
        }
        if let Some(ttl) = options.ttl.filter(|t| *t > 0) {
            socket.set_hop_limit(Some(ttl));
        }
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut none = Vec::new();
        let mut iface = Interface::new(config, &mut Port { rx: None, out: &mut none, mtu }, instant(now));
        let prefix = if tuple.local.0.is_ipv4() { 32 } else { 128 };
        iface.update_ip_addrs(|all| {
            let _ = all.push(IpCidr::new(tuple.local.0.into(), prefix));
        });
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Ok((iface, sockets, handle))
    }

    /// Whether nothing is under way, in either direction.
    fn is_still(&mut self) -> bool {
        let next = self.rcv_nxt();
        let whole = self.seen.hole.is_none_or(|h| h.wrapping_sub(next) as i32 <= 0);
        let s = self.socket();
        whole && s.state() == State::Established && s.send_queue() == 0 && s.recv_queue() == 0
    }

    /// Puts a socket with rings of these sizes in the place of the one there is; see the module. False if it cannot be. What
    /// tells the peer of the new window goes to `out`.
    fn replace(&mut self, sizes: [usize; 2], now: u64, out: Option<&mut Vec<Packet>>) -> bool {
        let (una, next) = (self.seen.snd_nxt, self.rcv_nxt());
        let seed = seed_for(una.wrapping_sub(1));
        let Ok((iface, sockets, handle)) = Self::fresh(self.tuple, &self.options, self.mtu, seed, now, sizes) else {
            return false;
        };
        let old = (
            core::mem::replace(&mut self.iface, iface),
            core::mem::replace(&mut self.sockets, sockets),
            core::mem::replace(&mut self.handle, handle),
        );
        let peer = self.tuple.flipped();
        let mut said = Vec::new();
        let syn = synthesize(&self.tuple, next.wrapping_sub(1), self.seen.offered);
        let ack = tcp::bare(&peer, next, una, packet::ACK, self.seen.heard.1, &[]);
        // What comes before the next byte is answered with what there is to say.
        let probe = tcp::bare(&peer, next.wrapping_sub(1), una, packet::ACK, self.seen.heard.1, &[]);
        let port = self.tuple.local.1;
        if let (Ok(()), Some(syn), Some(ack), Some(probe)) =
            (self.socket().listen(port).map_err(|_| ()), syn, ack, probe)
        {
            self.feed(syn.bytes(), now, &mut said);
            let mut port = Port { rx: None, out: &mut said, mtu: self.mtu };
            self.iface.poll_egress(instant(now), &mut port, &mut self.sockets);
            self.feed(ack.bytes(), now, &mut said);
            said.clear();
            self.feed(probe.bytes(), now, &mut said);
        }
        if self.socket().state() != State::Established || said.len() != 1 {
            (self.iface, self.sockets, self.handle) = old;
            return false;
        }
        self.probing = false;
        if let Some(out) = out {
            for p in &mut said {
                self.look_at(p);
            }
            out.append(&mut said);
        }
        true
    }
}

impl Flow {
    /// Replaces the rings if the stack's limit admits it.
    fn grow(&self, stack: &Stack, inner: &mut Inner, sizes: [usize; 2], out: Option<&mut Vec<Packet>>) -> bool {
        let s = inner.socket();
        let more = sizes.iter().sum::<usize>().saturating_sub(s.recv_capacity() + s.send_capacity());
        if stack.buffered.fetch_add(more, Ordering::Relaxed) + more > stack.limits.buffers
            || !inner.replace(sizes, stack.env.now_ns(), out)
        {
            stack.buffered.fetch_sub(more, Ordering::Relaxed);
            return false;
        }
        self.charged.bytes.fetch_add(more, Ordering::Relaxed);
        true
    }

    /// `whole` bytes are to be sent.
    pub(super) fn grow_for_sending(&self, stack: &Stack, inner: &mut Inner, whole: usize) {
        let filled = inner.filled;
        let s = inner.socket();
        let (has, rcv, queued) = (s.send_capacity(), s.recv_capacity(), s.send_queue());
        if queued > 0 || (whole <= has && filled == 0) || inner.options.sndbuf.is_some() {
            return;
        }
        inner.draining = false;
        let wanted = (2 * whole).max(if filled > 0 { 4 * has } else { 0 }).max(16 << 10).next_power_of_two();
        let wanted = wanted.min(stack.largest_buffer());
        if wanted > has && inner.is_still() {
            self.grow(stack, inner, [rcv, wanted], None);
        }
        // Also if it could not be: it is not waited for each time.
        inner.filled = 0;
    }

    /// Bytes were put into the ring: one that is often full is let run empty.
    pub(super) fn note_full(&self, stack: &Stack, inner: &mut Inner) {
        let s = inner.socket();
        let has = s.send_capacity();
        if s.send_queue() == has && inner.options.sndbuf.is_none() {
            inner.filled += 1;
            inner.draining = inner.filled >= OFTEN && has < ENOUGH.min(stack.largest_buffer());
        }
    }

    /// Bytes were read.
    pub(super) fn grow_for_receiving(&self, stack: &Stack, inner: &mut Inner, out: &mut Vec<Packet>) {
        let s = inner.socket();
        let (has, snd) = (s.recv_capacity(), s.send_capacity());
        if inner.taken < 4 * has || inner.options.rcvbuf.is_some() {
            return;
        }
        let most = if inner.seen.offered.scale.is_some() { stack.largest_buffer() } else { 65535 };
        if has < most && inner.is_still() && self.grow(stack, inner, [(4 * has).min(most), snd], Some(out)) {
            inner.taken = 0;
        }
    }
}
