//! Maps, strings, boxed traits and recursion.

use std::collections::{BTreeMap, HashMap};

trait Shape {
    fn area(&self, depth: u64) -> u64;
}

struct Leaf(u64);
struct Branch(Vec<Box<dyn Shape>>);

impl Shape for Leaf {
    fn area(&self, depth: u64) -> u64 {
        self.0.wrapping_mul(depth + 1)
    }
}

impl Shape for Branch {
    fn area(&self, depth: u64) -> u64 {
        self.0.iter().fold(1, |area, shape| area.wrapping_mul(31).wrapping_add(shape.area(depth + 1)))
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

fn grow(random: &mut Random, depth: u32) -> Box<dyn Shape> {
    if depth == 0 || random.next() % 8 == 0 {
        return Box::new(Leaf(random.next()));
    }
    Box::new(Branch((0..random.next() % 4 + 1).map(|_| grow(random, depth - 1)).collect()))
}

fn ackermann(m: u64, n: u64) -> u64 {
    match (m, n) {
        (0, n) => n + 1,
        (m, 0) => ackermann(m - 1, 1),
        (m, n) => ackermann(m - 1, ackermann(m, n - 1)),
    }
}

fn main() {
    let rounds: u64 = std::env::args().nth(1).and_then(|rounds| rounds.parse().ok()).unwrap_or(3);
    let mut random = Random(42);
    let mut texts: BTreeMap<u64, String> = BTreeMap::new();
    let mut words: HashMap<String, u64> = HashMap::new();
    for round in 0..rounds {
        for count in 0..400 {
            let key = random.next() % 5_000;
            texts.entry(key).or_default().push_str(&format!("{:x}", count % 16));
            *words.entry(format!("w{}", key % 97)).or_default() += 1;
            let above = texts.range(key / 2..).next().map(|(key, _)| *key);
            if let (Some(above), 0) = (above, count % 3) {
                texts.remove(&above);
            }
        }
        let most = words.iter().max_by(|one, other| one.1.cmp(other.1).then(other.0.cmp(one.0)));
        println!("{round}: {} keys, {most:?}, area {:x}, {}", texts.len(), grow(&mut random, 6).area(0), ackermann(2, 30 + round));
    }
}
