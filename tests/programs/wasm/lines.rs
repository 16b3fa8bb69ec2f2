//! Work on each line of standard input, with a log in a file that is read back at the end.

use std::fs::OpenOptions;
use std::io::{self, BufRead, Read, Seek, Write};
use std::{thread, time::Duration};

fn main() -> io::Result<()> {
    let mut log = OpenOptions::new().create(true).truncate(true).read(true).write(true).open("log.txt")?;
    for (number, line) in io::stdin().lock().lines().enumerate() {
        let line = line?;
        let hash = (0..20).flat_map(|_| line.bytes()).fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        writeln!(log, "{number} {hash:016x}")?;
        println!("{number}: {line} {hash:016x}");
        if number % 16 == 15 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    log.rewind()?;
    let mut text = String::new();
    log.read_to_string(&mut text)?;
    println!("{} lines of log, the last is {:?}", text.lines().count(), text.lines().last());
    Ok(())
}
