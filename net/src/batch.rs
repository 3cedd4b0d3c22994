//! Segments that arrived together.
//!
//! # Ideas
//! What a device's thread finds in its ring, or a lane of loopback in its queue, is taken in as one batch. Segments of known
//! connections are only looked up then, and sorted by connection; when everything has been looked at, each connection gets
//! all of its segments in one step ([`Flow::segments`]): one lock, one look at what is to be sent (so one acknowledgement, and the
//! window with it), one deadline, one wake-up. Nothing is copied to merge segments: TCP sees each, in the order of arrival,
//! so what it decides from single segments (duplicate acknowledgements, holes) it decides as ever.
//!
//! All else (handshakes, datagrams, errors) is handled at once, so it may overtake segments of the same batch: the
//! network may do that too.
//!
//! # Bounds
//! [`GROUPS`] connections at a time; one more, and those that are there are served first.

use crate::Stack;
use crate::flow::Flow;
use crate::input::Arrival;
use crate::packet::Tuple;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// Connections of a batch.
const GROUPS: usize = 8;

/// See the module.
pub(crate) struct Batch<'a> {
    flows: [Option<Arc<Flow>>; GROUPS],
    /// Whose segment, and the segment.
    segments: Vec<(usize, Arrival<'a>)>,
    /// How many there may be.
    room: usize,
}

impl<'a> Batch<'a> {
    /// For about `room` packets.
    pub fn new(room: usize) -> Self {
        Batch { flows: [const { None }; GROUPS], segments: Vec::new(), room }
    }

    /// Adds a segment if its connection is known to the batch.
    pub fn add(&mut self, tuple: &Tuple, a: &Arrival<'a>) -> bool {
        let group = self.flows.iter().position(|f| f.as_ref().is_some_and(|f| f.tuple == *tuple));
        if let Some(group) = group {
            self.segments.push((group, *a));
        }
        group.is_some()
    }

    /// Adds the first segment of a connection.
    pub fn begin(&mut self, stack: &Stack, flow: Arc<Flow>, a: &Arrival<'a>) {
        if self.flows[GROUPS - 1].is_some() {
            self.finish(stack);
        }
        if self.segments.capacity() == 0 {
            self.segments.reserve(self.room);
        }
        if let Some(group) = self.flows.iter().position(Option::is_none) {
            self.flows[group] = Some(flow);
            self.segments.push((group, *a));
        }
    }

    /// Hands all segments to their connections.
    pub fn finish(&mut self, stack: &Stack) {
        for group in 0..GROUPS {
            let Some(flow) = self.flows[group].take() else { break };
            let own = || self.segments.iter().filter(|s| s.0 == group).map(|s| &s.1);
            let taken = flow.segments(stack, own().map(|a| a.bytes));
            // The connection ended in between: the others find their way from the beginning.
            for a in own().skip(taken) {
                let _ = stack.tcp_input(a, None);
            }
        }
        self.segments.clear();
    }
}
