"""Rust's shim, with this host's own compiler: what a function meets, and what comes back over
descriptor 3.
"""

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.kit.function_process import ANSWER, LOADED, RESUMED, BuildError, FunctionProcess, LoadError, Message, function_of

MAX_PAYLOAD = 6 << 20
RUST = """
mod helper;

pub fn init() { helper::LOADED.store(7, std::sync::atomic::Ordering::SeqCst); println!("init"); }

pub fn handle(event: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    println!("asked");
    print!("no newline");
    match event {
        b"error" => Err("a \\"quoted\\"\\nerror\\u{1}".into()),
        b"parse" => Ok(vec!["x".parse::<u8>()?]),
        b"panic" => panic!("at {}", helper::loaded()),
        b"value" => std::panic::panic_any(5),
        b"index" => Ok(vec![event[event.len()]]),
        b"silent" => std::panic::resume_unwind(Box::new("silent")),
        b"drop" => { struct D; impl Drop for D { fn drop(&mut self) { panic!("dropped") } } std::panic::panic_any(D) }
        b"thread" => { let ended = std::thread::spawn(|| panic!("elsewhere")).join(); Ok(vec![u8::from(ended.is_err())]) }
        b"child" => Ok(std::process::Command::new("sleep").arg("300").spawn()?.id().to_string().into_bytes()),
        b"large" => Ok(vec![0; (6 << 20) + 1]),
        b"exit" => std::process::exit(9),
        b"abort" => std::process::abort(),
        _ => Ok([helper::loaded().to_string().as_bytes(), b" ", event].concat()),
    }
}
"""
HELPER = """
use std::sync::atomic::{AtomicU32, Ordering};
pub static LOADED: AtomicU32 = AtomicU32::new(0);
pub fn loaded() -> u32 { crate::helper::LOADED.load(Ordering::SeqCst) }
"""
EDITION = {"edition": "2021"}
needs_rust = pytest.mark.skipif(shutil.which("rustc") is None, reason="rustc is not installed")


@needs_rust
def test_a_rust_function(tmp_path: Path) -> None:
    with FunctionProcess(function_of("rust"), {"handler.rs": RUST, "helper.rs": HELPER}, tmp_path, options=EDITION) as process:
        assert process.load() == Message(kind=LOADED, id=0, took_us=0, content_type="", payload=b"", log=b"init\n")
        said = process.ask(b"x", "text/plain", id=5)
        assert (said.kind, said.id, said.content_type, said.payload, said.log) == (ANSWER, 5, "", b"7 x", b"asked\nno newline")
        process.send(kind=RESUMED, id=0)
        large = bytes(range(256)) * (MAX_PAYLOAD // 256 - 1)
        assert process.ask(large).payload == b"7 " + large
        expected = {
            b"error": ("alloc::boxed::Box<dyn core::error::Error>", 'a "quoted"\nerror\x01', ""),
            b"parse": ("alloc::boxed::Box<dyn core::error::Error>", "invalid digit found in string", ""),
            b"panic": ("panic", "at 7", "panicked at handler.rs:12:"),
            b"value": ("panic", "panicked with a value that is not text", "panicked at handler.rs:13:"),
            b"index": ("panic", "index out of bounds: the len is 5 but the index is 5", "panicked at handler.rs:14:"),
            b"silent": ("panic", "silent", ""),
            b"drop": ("panic", "panicked with a value that is not text", "panicked at handler.rs:16:"),
            b"large": ("answer too large", "the answer has 6291457 bytes; at most 6291456 can be sent", ""),
        }
        for payload, (error, text, place) in expected.items():
            said = process.ask(payload)
            fields = said.exception
            assert (fields["error"].replace("std::error", "core::error"), fields["message"]) == (error, text), payload
            assert fields["trace"].startswith(place), payload
            assert bool(fields["trace"]) == bool(place), payload
            assert said.log == b"asked\nno newline", payload
        said = process.ask(b"thread")
        assert said.payload == b"\1"
        assert b"elsewhere" in said.log
        child = int(process.ask(b"child").payload)
        try:
            with pytest.raises(EOFError):
                process.ask(b"exit")
            assert process.process.wait(60) == 9
            assert process.log() == b"asked\nno newline"
        finally:
            os.kill(child, signal.SIGKILL)


@needs_rust
@pytest.mark.parametrize(
    ("source", "entry", "words"),
    [
        ("pub fn other() {}\n", "handle", ["handle", "handler"]),
        ("fn handle(event: &[u8]) -> Result<Vec<u8>, String> { Ok(event.to_vec()) }\n", "handle", ["private", "handler.rs:1"]),
        ("pub fn handle(event: &[u8]) { }\n", "handle", ["expected"]),
        ("pub fn handle(event: &[u8]) -> Result<Vec<u8>, String> { Ok(event) }\n", "handle", ["mismatched types", "handler.rs:1"]),
        ("pub fn handle( {}\n", "handle", ["handler.rs:1"]),
        ("pub fn handle() {}\n", "handler.handle", ["entry.rs"]),
    ],
    ids=["missing", "private", "no result", "wrong types", "syntax", "entry"],
)
def test_a_rust_function_that_cannot_be_built(tmp_path: Path, source: str, entry: str, words: list[str]) -> None:
    with pytest.raises(BuildError) as caught:
        FunctionProcess(function_of("rust"), {"handler.rs": source}, tmp_path, options=EDITION, entry=entry)
    for word in words:
        assert word in str(caught.value)


@needs_rust
def test_a_rust_function_without_init_and_with_another_entry(tmp_path: Path) -> None:
    source = "pub mod deep { pub fn work(event: &[u8]) -> Result<String, std::fmt::Error> { Ok(event.len().to_string()) } }\n"
    with FunctionProcess(function_of("rust"), {"handler.rs": source}, tmp_path, options=EDITION, entry="deep::work") as process:
        process.load()
        assert process.ask(b"four").payload == b"4"
        process.process.terminate()
        with pytest.raises((EOFError, ConnectionError)):
            process.ask()


@needs_rust
def test_a_rust_function_whose_init_panics(tmp_path: Path) -> None:
    source = 'pub fn init() { panic!("no model") }\npub fn handle(_: &[u8]) -> Result<Vec<u8>, String> { Ok(vec![]) }\n'
    with (
        FunctionProcess(function_of("rust"), {"handler.rs": source}, tmp_path, options=EDITION) as process,
        pytest.raises(LoadError) as caught,
    ):
        process.load()
    assert caught.value.code == 101
    assert "no model" in caught.value.log
    assert "handler.rs:1" in caught.value.log
