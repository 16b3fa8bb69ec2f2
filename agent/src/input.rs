//! A run's standard input, on its way from the host to the step that takes it.

use std::collections::VecDeque;

use crate::channel::Channel;
use crate::frame::ToHost;
use crate::step::{Slots, Step};
use crate::sys::PollSet;

/// CREDIT is given in pieces of at least this size.
const CREDIT_PIECE: usize = 16 << 10;

#[derive(Default)]
pub struct Input {
    pub waiting: VecDeque<u8>,
    /// What the host may still send.
    pub granted: usize,
    /// Taken by the program and not yet granted anew.
    pub taken: usize,
    pub eof: bool,
    /// The step that takes it is over, or has closed it: whatever comes is dropped.
    pub gone: bool,
}

impl Input {
    /// Whether the program has got all that it will ever get.
    pub fn is_over(&self) -> bool {
        self.eof && self.waiting.is_empty()
    }

    /// Give the step what waits for it, and close its standard input at the end.
    pub fn pass_on(&mut self, step: &mut Step, slots: &Slots, set: &PollSet) {
        if step.stdin.is_none() {
            return;
        }
        match step.feed(self.waiting.as_slices().0, slots, set) {
            Some(count) => {
                self.waiting.drain(..count);
                self.taken += count;
            }
            None => {
                self.gone = true;
                self.waiting.clear();
            }
        }
        if self.is_over() {
            match step.type_end() {
                Some(typed) => self.waiting.extend(typed),
                None => {
                    step.stdin = None;
                    self.gone = true;
                }
            }
        }
    }

    /// Let the host send as much as has been taken, in pieces worth a frame.
    pub fn grant(&mut self, channel: &mut Channel, run: u32) {
        if self.taken >= CREDIT_PIECE && !self.gone {
            channel.send(run, &ToHost::Credit(self.taken as u32));
            self.granted += self.taken;
            self.taken = 0;
        }
    }
}
