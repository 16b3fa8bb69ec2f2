// Answers lines of connections, one connection after the other, at a socket that was opened for the program.
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::FromRawFd;

fn main() {
    let listener = unsafe { TcpListener::from_raw_fd(4) };
    loop {
        let (stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        let mut from = BufReader::new(&stream);
        while matches!(from.read_line(&mut line), Ok(size) if size > 0) {
            if line == "quit\n" {
                return;
            }
            let mut sum = 7u32;
            for round in 0..200u32 {
                for byte in line.bytes() {
                    sum = sum.wrapping_mul(31).wrapping_add(u32::from(byte)).wrapping_add(round);
                }
            }
            if (&stream).write_all(format!("{sum:08x}\n").as_bytes()).is_err() {
                break;
            }
            line.clear();
        }
    }
}
