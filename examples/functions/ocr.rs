//! Reads the digits in a picture: a plain PBM (`P1`) of at most 1,024 by 1,024 points in, JSON with the text out.
//!
//! A request such as `{"request": 42}` has it draw the number, add noise, and read it. It tries every digit at every place of
//! the picture, as a reader does that knows nothing of lines and letters.

const WIDTH: usize = 5;
const HEIGHT: usize = 7;
const LARGEST: usize = 1024;
/// Each digit in rows of five points.
const DIGITS: [[u8; HEIGHT]; 10] = [
    [0b01110, 0b10001, 0b10011, 0b10101, 0b11001, 0b10001, 0b01110],
    [0b00100, 0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110],
    [0b01110, 0b10001, 0b00001, 0b00110, 0b01000, 0b10000, 0b11111],
    [0b11111, 0b00010, 0b00100, 0b00010, 0b00001, 0b10001, 0b01110],
    [0b00010, 0b00110, 0b01010, 0b10010, 0b11111, 0b00010, 0b00010],
    [0b11111, 0b10000, 0b11110, 0b00001, 0b00001, 0b10001, 0b01110],
    [0b00110, 0b01000, 0b10000, 0b11110, 0b10001, 0b10001, 0b01110],
    [0b11111, 0b00001, 0b00010, 0b00100, 0b01000, 0b01000, 0b01000],
    [0b01110, 0b10001, 0b10001, 0b01110, 0b10001, 0b10001, 0b01110],
    [0b01110, 0b10001, 0b10001, 0b01111, 0b00001, 0b00010, 0b01100],
];
/// Points on a side of the square that stands for one point of a digit, in the pictures drawn here.
const SCALE: usize = 6;

struct Picture {
    width: usize,
    height: usize,
    points: Vec<bool>,
}

pub fn handle(event: &[u8]) -> Result<Vec<u8>, String> {
    if event.starts_with(b"P1") {
        let text = read(&parse(event)?);
        return Ok(format!("{{\"text\":\"{text}\"}}").into_bytes());
    }
    let number: u64 = digits_of(event).parse().map_err(|_| "send a plain PBM, or {\"request\": N}".to_string())?;
    let text = read(&draw(&number.to_string(), number));
    println!("drew {number}, read {text}");
    Ok(format!("{{\"request\":{number},\"text\":\"{text}\"}}").into_bytes())
}

fn digits_of(event: &[u8]) -> String {
    String::from_utf8_lossy(event).chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect()
}

fn parse(event: &[u8]) -> Result<Picture, String> {
    let text = String::from_utf8_lossy(event);
    let mut words = text.lines().filter(|line| !line.starts_with('#')).flat_map(str::split_whitespace).skip(1);
    let mut side = || -> Result<usize, String> {
        let found = words.next().and_then(|word| word.parse().ok());
        found.filter(|side| (1..=LARGEST).contains(side)).ok_or(format!("width and height are 1 to {LARGEST}"))
    };
    let (width, height) = (side()?, side()?);
    let points: Vec<bool> = words.flat_map(str::chars).map(|point| point == '1').collect();
    if points.len() != width * height {
        return Err(format!("the picture has {} points, not {width} by {height}", points.len()));
    }
    Ok(Picture { width, height, points })
}

/// The text as a picture, of whose points one in twenty is wrong.
fn draw(text: &str, seed: u64) -> Picture {
    let (width, height) = ((text.len() * (WIDTH + 1) + 1) * SCALE, (HEIGHT + 2) * SCALE);
    let mut points = vec![false; width * height];
    for (place, digit) in text.bytes().map(|byte| usize::from(byte - b'0')).enumerate() {
        for y in 0..HEIGHT * SCALE {
            for x in 0..WIDTH * SCALE {
                let at = (y + SCALE) * width + (place * (WIDTH + 1) + 1) * SCALE + x;
                points[at] = is_set(digit, x / SCALE, y / SCALE);
            }
        }
    }
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for point in &mut points {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *point ^= state % 20 == 0;
    }
    Picture { width, height, points }
}

fn is_set(digit: usize, x: usize, y: usize) -> bool {
    DIGITS[digit][y] >> (WIDTH - 1 - x) & 1 == 1
}

/// The digits that fit best, from left to right, where nine of ten points agree.
fn read(picture: &Picture) -> String {
    let (width, height) = (WIDTH * SCALE, HEIGHT * SCALE);
    let mut found = Vec::new();
    for top in 0..(picture.height + 1).saturating_sub(height) {
        for left in 0..(picture.width + 1).saturating_sub(width) {
            let (agreeing, digit) = (0..10).map(|digit| (agreement(picture, left, top, digit), digit)).max().unwrap_or_default();
            if agreeing * 10 >= width * height * 9 {
                found.push((agreeing, left, digit));
            }
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    let mut read: Vec<(usize, usize)> = Vec::new();
    for (_, left, digit) in found {
        if read.iter().all(|(other, _)| left.abs_diff(*other) >= width) {
            read.push((left, digit));
        }
    }
    read.sort_unstable();
    read.iter().map(|(_, digit)| char::from(b'0' + *digit as u8)).collect()
}

fn agreement(picture: &Picture, left: usize, top: usize, digit: usize) -> usize {
    let mut agreeing = 0;
    for y in 0..HEIGHT * SCALE {
        let row = &picture.points[(top + y) * picture.width + left..][..WIDTH * SCALE];
        agreeing += row.iter().enumerate().filter(|(x, point)| **point == is_set(digit, x / SCALE, y / SCALE)).count();
    }
    agreeing
}
