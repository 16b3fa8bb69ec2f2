//! Pieces of memory, packed in the block format of LZ4 (lz4_Block_format.md): sequences of literals and of a match that lies up to
//! 65,535 bytes before. It is fast, and needs nothing but what was unpacked before.

/// Bytes of a piece: each place in it fits a match's offset.
pub const PIECE: usize = 1 << 16;
const HASH_BITS: u32 = 12;
const LEAST: usize = 4;
/// Bytes of literals that a block ends with, and those before its end in which no match begins.
const LAST_LITERALS: usize = 5;
const NO_MATCH: usize = 12;

/// Pack a piece behind what `to` has.
pub fn pack(piece: &[u8], to: &mut Vec<u8>) {
    let mut seen = [0u16; 1 << HASH_BITS];
    let (mut literals, mut at) = (0, 1); // what was never seen is said to be at 0
    while at + NO_MATCH < piece.len() {
        let word = word(piece, at);
        let seen = &mut seen[(word.wrapping_mul(0x9e37_79b1) >> (32 - HASH_BITS)) as usize];
        let before = usize::from(std::mem::replace(seen, at as u16));
        if self::word(piece, before) != word {
            at += 1 + ((at - literals) >> 6); // ever faster through what does not repeat
            continue;
        }
        let (here, there) = (&piece[at + LEAST..piece.len() - LAST_LITERALS], &piece[before + LEAST..]);
        let length = here.iter().zip(there).take_while(|(a, b)| a == b).count();
        sequence(&piece[literals..at], Some(((at - before) as u16, length)), to);
        at += LEAST + length;
        literals = at;
    }
    sequence(&piece[literals..], None, to);
}

/// Literals, then a match: its offset, and by how much it is longer than LEAST.
fn sequence(literals: &[u8], found: Option<(u16, usize)>, to: &mut Vec<u8>) {
    let (offset, longer) = found.unwrap_or((0, 0));
    to.push((literals.len().min(15) << 4 | longer.min(15)) as u8);
    length(literals.len(), to);
    to.extend_from_slice(literals);
    if found.is_some() {
        to.extend_from_slice(&offset.to_le_bytes());
        length(longer, to);
    }
}

/// What a token of four bits does not say of a length.
fn length(length: usize, to: &mut Vec<u8>) {
    if let Some(mut rest) = length.checked_sub(15) {
        while rest >= 255 {
            to.push(255);
            rest -= 255;
        }
        to.push(rest as u8);
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Unpack to exactly this piece; none if `from`, which may be anybody's, does not have it.
pub fn unpack(mut from: &[u8], piece: &mut [u8]) -> Option<()> {
    let mut at = 0;
    loop {
        let token = usize::from(take(&mut from, 1)?[0]);
        let literals = take_length(&mut from, token >> 4)?;
        let literals = take(&mut from, literals)?;
        piece.get_mut(at..at + literals.len())?.copy_from_slice(literals);
        at += literals.len();
        if from.is_empty() {
            return (at == piece.len()).then_some(());
        }
        let offset = take(&mut from, 2)?;
        let offset = usize::from(u16::from_le_bytes([offset[0], offset[1]]));
        let end = at + LEAST + take_length(&mut from, token & 15)?;
        if offset == 0 || offset > at || end > piece.len() {
            return None;
        }
        while at < end {
            let count = offset.min(end - at); // it may repeat what it writes
            piece.copy_within(at - offset..at - offset + count, at);
            at += count;
        }
    }
}

fn take<'a>(from: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let taken = from.get(..count)?;
    *from = &from[count..];
    Some(taken)
}

fn take_length(from: &mut &[u8], token: usize) -> Option<usize> {
    if token < 15 {
        return Some(token);
    }
    let mut length = token;
    loop {
        let more = take(from, 1)?[0];
        length += usize::from(more);
        if more < 255 {
            return Some(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces() -> Vec<Vec<u8>> {
        let mut seed = 1u64;
        let mut random = move |most: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % most
        };
        let mut pieces: Vec<Vec<u8>> = vec![vec![], vec![1], vec![7; 12], vec![7; 13], vec![7; PIECE]];
        for _ in 0..200 {
            let (size, kinds, same) = (random(PIECE as u64 + 1), 1 + random(256), 1 + random(300));
            let mut piece = vec![];
            while (piece.len() as u64) < size {
                let (value, count) = (random(kinds) as u8, random(same).min(size - piece.len() as u64) + 1);
                piece.extend(std::iter::repeat(value).take(count as usize));
            }
            piece.truncate(size as usize);
            pieces.push(piece);
        }
        pieces
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        for piece in pieces() {
            let (mut packed, mut again) = (vec![], vec![0xaa; piece.len()]);
            pack(&piece, &mut packed);
            assert!(packed.len() <= piece.len() + piece.len() / 255 + 16);
            assert_eq!(unpack(&packed, &mut again), Some(()));
            assert_eq!(again, piece);
        }
        let mut packed = vec![];
        pack(&[7; PIECE], &mut packed);
        assert!(packed.len() < 300);
    }

    #[test]
    fn no_damage_is_believed() {
        for piece in pieces().iter().take(40).filter(|piece| !piece.is_empty()) {
            let mut packed = vec![];
            pack(piece, &mut packed);
            let mut to = vec![0; piece.len()];
            for at in (0..packed.len()).step_by(1 + packed.len() / 50) {
                assert_eq!(unpack(&packed[..at], &mut to), None, "cut at {at}");
                let mut damaged = packed.clone();
                damaged[at] ^= 1 << (at % 8);
                let _ = unpack(&damaged, &mut to); // does not go beyond either
            }
            assert_eq!(unpack(&packed, &mut to[1..]), None);
            to.push(0);
            assert_eq!(unpack(&packed, &mut to), None);
        }
        assert_eq!(unpack(&[0x10, 1, 0, 0, 0], &mut [0; 9]), None); // a match of itself
        assert_eq!(unpack(&[0x10, 1, 2, 0, 0], &mut [0; 9]), None); // before the beginning
    }
}
