//! Bodies that attract each other: every bit of the floats is printed.

#[derive(Clone, Copy)]
struct Body {
    place: [f64; 3],
    speed: [f64; 3],
    mass: f64,
}

fn advance(bodies: &mut [Body], step: f64) {
    for first in 0..bodies.len() {
        for second in first + 1..bodies.len() {
            let (one, other) = (bodies[first], bodies[second]);
            let distance = [0, 1, 2].map(|axis| one.place[axis] - other.place[axis]);
            let square = distance.iter().map(|part| part * part).sum::<f64>();
            let pull = step / (square * square.sqrt());
            for axis in 0..3 {
                bodies[first].speed[axis] -= distance[axis] * other.mass * pull;
                bodies[second].speed[axis] += distance[axis] * one.mass * pull;
            }
        }
    }
    for body in bodies {
        for axis in 0..3 {
            body.place[axis] += step * body.speed[axis];
        }
    }
}

fn main() {
    let steps: u32 = std::env::args().nth(1).and_then(|steps| steps.parse().ok()).unwrap_or(2_000);
    let mut bodies: Vec<Body> = (0..5)
        .map(|index| {
            let angle = f64::from(index) * 1.3;
            let far = 1.0 + f64::from(index) * 4.7;
            let speed = if index == 0 { 0.0 } else { 6.0 / far.sqrt() };
            Body {
                place: [far * angle.cos(), far * angle.sin(), 0.1 * angle],
                speed: [-speed * angle.sin(), speed * angle.cos(), 0.01 * angle],
                mass: if index == 0 { 39.0 } else { 0.03 / f64::from(index) },
            }
        })
        .collect();
    for step in 1..=steps {
        advance(&mut bodies, 0.001);
        if step % (steps / 10).max(1) == 0 {
            let bits = bodies.iter().flat_map(|body| body.place).fold(0u64, |bits, part| bits.rotate_left(7) ^ part.to_bits());
            println!("{step} {:.12} {bits:016x}", bodies[1].place[0]);
        }
    }
}
