//! SLIP (RFC 1055): escaping, and finding packets in a stream that may be damaged.

use std::collections::VecDeque;

pub const END: u8 = 0xC0;
const ESC: u8 = 0xDB;
const ESC_END: u8 = 0xDC;
const ESC_ESC: u8 = 0xDD;

/// Append the packet to `out`, escaped, with an END before and one after it.
pub fn encode(packet: &[u8], out: &mut VecDeque<u8>) {
    out.reserve(packet.len() + packet.len() / 16 + 2);
    out.push_back(END);
    for &byte in packet {
        match byte {
            END => out.extend([ESC, ESC_END]),
            ESC => out.extend([ESC, ESC_ESC]),
            _ => out.push_back(byte),
        }
    }
    out.push_back(END);
}

/// What comes between two ENDs.
pub enum Piece {
    Packet(Vec<u8>),
    /// Badly escaped or over the cap.
    Damaged,
}

/// Splits a stream at END; never holds more than `cap` bytes.
pub struct Splitter {
    cap: usize,
    packet: Vec<u8>,
    escaped: bool,
    damaged: bool,
}

impl Splitter {
    /// `cap` counts bytes after the escapes are undone, which is the stricter way round.
    pub fn new(cap: usize) -> Splitter {
        Splitter { cap, packet: Vec::new(), escaped: false, damaged: false }
    }

    /// Take in the stream's next bytes; gives what they complete, without the empty packets.
    pub fn feed(&mut self, data: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for &byte in data {
            match (byte, self.escaped) {
                (END, _) => pieces.extend(self.finish()),
                (ESC, false) => self.escaped = true,
                (ESC_END, true) => self.push(END),
                (ESC_ESC, true) => self.push(ESC),
                (_, true) => self.damage(),
                (_, false) => self.push(byte),
            }
        }
        pieces
    }

    fn push(&mut self, byte: u8) {
        self.escaped = false;
        if self.packet.len() == self.cap {
            self.damage();
        }
        if !self.damaged {
            self.packet.push(byte);
        }
    }

    fn damage(&mut self) {
        self.escaped = false;
        self.damaged = true;
        self.packet.clear();
    }

    fn finish(&mut self) -> Option<Piece> {
        let damaged = self.damaged || self.escaped;
        self.damaged = false;
        self.escaped = false;
        let packet = std::mem::take(&mut self.packet);
        if damaged {
            return Some(Piece::Damaged);
        }
        (!packet.is_empty()).then_some(Piece::Packet(packet))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(splitter: &mut Splitter, data: &[u8]) -> Vec<Option<Vec<u8>>> {
        let unwrap = |piece| match piece {
            Piece::Packet(packet) => Some(packet),
            Piece::Damaged => None,
        };
        splitter.feed(data).into_iter().map(unwrap).collect()
    }

    #[test]
    fn any_bytes_survive_in_any_pieces() {
        let packet: Vec<u8> = (0..=255).collect();
        let mut stream = VecDeque::new();
        encode(&packet, &mut stream);
        let stream: Vec<u8> = stream.into();
        for size in 1..stream.len() {
            let mut splitter = Splitter::new(256);
            let got: Vec<_> = stream.chunks(size).flat_map(|piece| packets(&mut splitter, piece)).collect();
            assert_eq!(got, [Some(packet.clone())]);
        }
    }

    #[test]
    fn finds_its_way_again_at_the_next_end() {
        let mut splitter = Splitter::new(4);
        assert_eq!(packets(&mut splitter, b"\xc0ab\xdbxcd\xc0ok\xc0"), [None, Some(b"ok".to_vec())]);
        assert_eq!(packets(&mut splitter, b"ab\xdb\xc0ok\xc0"), [None, Some(b"ok".to_vec())]);
        assert_eq!(packets(&mut splitter, b"five5\xc0four\xc0"), [None, Some(b"four".to_vec())]);
        assert_eq!(packets(&mut splitter, &[END; 9]), []);
    }

    #[test]
    fn holds_no_more_than_the_cap() {
        let mut splitter = Splitter::new(10);
        for _ in 0..1000 {
            splitter.feed(b"abcdefg");
            assert!(splitter.packet.len() <= 10);
        }
    }
}
