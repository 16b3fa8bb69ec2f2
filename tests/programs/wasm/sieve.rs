//! Count primes, a line for each round: tight loops over memory.

fn main() {
    let rounds = std::env::args().nth(1).and_then(|rounds| rounds.parse().ok()).unwrap_or(4);
    for round in 1..=rounds {
        let size = 20_000 + round * 1_000;
        let mut composite = vec![false; size];
        for number in (2..).take_while(|number| number * number < size) {
            if !composite[number] {
                (number * number..size).step_by(number).for_each(|multiple| composite[multiple] = true);
            }
        }
        let primes = composite[2..].iter().filter(|composite| !**composite).count();
        println!("{round}: {primes} primes below {size}");
    }
}
