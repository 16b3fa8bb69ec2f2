use std::os::unix::ffi::OsStringExt;

use super::*;
use crate::slip::{Piece, Splitter};

struct Vector {
    name: &'static str,
    packed: Vec<u8>,
    escaped: Vec<u8>,
    verdict: &'static str,
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
}

fn vectors() -> Vec<Vector> {
    let row = |line: &'static str| {
        let fields: Vec<&str> = line.split('\t').collect();
        Vector { name: fields[0], packed: unhex(fields[1]), escaped: unhex(fields[2]), verdict: fields[3] }
    };
    include_str!("../../vectors.txt").lines().map(row).collect()
}

fn packed(name: &str) -> Vec<u8> {
    vectors().into_iter().find(|vector| vector.name == name).expect("a vector of that name").packed
}

#[test]
fn every_vector_gets_its_verdict() {
    for vector in vectors() {
        let mut pieces = Splitter::new(MAX_PACKET).feed(&[&vector.escaped[..], &[0xC0]].concat());
        assert_eq!(pieces.len(), 1, "{}", vector.name);
        let packet = match pieces.remove(0) {
            Piece::Packet(packet) => packet,
            Piece::Damaged => {
                assert_eq!(vector.verdict, "badly escaped", "{}", vector.name);
                continue;
            }
        };
        assert_eq!(packet, vector.packed, "{}", vector.name);
        let expected = match vector.verdict {
            "ok" => None,
            "too short" => Some(Drop::Short),
            "wrong CRC" => Some(Drop::Crc),
            "unknown type" => Some(Drop::Type),
            "payload does not parse" => Some(Drop::Payload),
            other => panic!("{}: unknown verdict {other}", vector.name),
        };
        // What only the host takes is of an unknown type here.
        let of_the_agent = packet[0] >= 0x80 && matches!(expected, None | Some(Drop::Payload));
        let expected = if of_the_agent { Some(Drop::Type) } else { expected };
        assert_eq!(parse(&packet).err(), expected, "{}", vector.name);
    }
}

#[test]
fn too_long() {
    assert_eq!(parse(&vec![1; MAX_PACKET + 1]).err(), Some(Drop::Long));
}

#[test]
fn start_has_all_its_fields() {
    let frame = parse(&packed("start")).expect("a frame");
    assert_eq!(frame.run, 7);
    let start = match frame.message {
        FromHost::Start(start) => start,
        other => panic!("{other:?}"),
    };
    assert_eq!(start.env[0], ("PATH".into(), "/usr/bin".into()));
    assert_eq!(start.env[1].1, OsString::from_vec(vec![0xff]));
    let build = &start.steps[0];
    assert_eq!((build.name.as_str(), &build.argv[3], &build.cwd), ("build", &"main.rs".into(), &"/work".into()));
    assert_eq!((build.wall_ms, build.cpu_ms, build.memory), (60_000, 50_000, 512 << 20));
    assert_eq!((build.processes, build.output, build.file_size, build.stdin), (128, 1 << 20, 64 << 20, true));
    assert!(!start.steps[1].stdin);
    assert_eq!((start.keep, start.from_products, build.terminal), (false, false, (0, 0)));
    let file = &start.files[0];
    assert_eq!((&file.path, file.mode, file.size), (&"main.rs".into(), 0o644, 12));
}

#[test]
fn what_version_3_brought() {
    let start = |name| match parse(&packed(name)).expect("a frame").message {
        FromHost::Start(start) => start,
        other => panic!("{other:?}"),
    };
    let (keep, from, terminal) = (start("start-keep"), start("start-from-products"), start("start-terminal"));
    assert_eq!((keep.keep, keep.from_products, keep.steps.len(), keep.files.len()), (true, false, 0, 1));
    assert_eq!((from.keep, from.from_products, from.steps[0].stdin), (false, true, true));
    assert_eq!(terminal.steps[0].terminal, (132, 43));
    assert!(matches!(parse(&packed("resize")).expect("a frame").message, FromHost::Resize { columns: 80, rows: 24 }));
    assert!(matches!(parse(&packed("collect")).expect("a frame").message, FromHost::Collect { globs: false, .. }));
    assert!(matches!(parse(&packed("collect-globs")).expect("a frame").message, FromHost::Collect { globs: true, .. }));
}

#[test]
fn what_version_4_brought() {
    let function = match parse(&packed("start-function")).expect("a frame").message {
        FromHost::Start(mut start) => start.steps.remove(0),
        other => panic!("{other:?}"),
    };
    assert_eq!((function.function, function.stdin, function.output), (true, false, 1 << 20));
    let request = |name| match parse(&packed(name)).expect("a frame").message {
        FromHost::Request(request) => request,
        other => panic!("{other:?}"),
    };
    let (whole, piece) = (request("request"), request("request-piece"));
    assert_eq!((whole.id, whole.content_type.as_str(), whole.size, &whole.data[..]), (u32::MAX - 1, "application/json", 3, &b"[1]"[..]));
    assert_eq!((piece.id, piece.content_type.as_str(), piece.size, &piece.data[..]), (1, "", 1 << 20, &b"\xc0\xdb"[..]));
    assert!(request("request-empty").data.is_empty());
}

fn response<'a>(id: u32, kind: ResponseKind, took_us: u64, content_type: &'a str, size: u32, data: &'a [u8]) -> ToHost<'a> {
    ToHost::Response { id, kind, took_us, content_type, size, data }
}

#[test]
fn an_identity_has_all_its_fields() {
    let resumed = match parse(&packed("resumed-network")).expect("a frame").message {
        FromHost::Resumed(resumed) => resumed,
        other => panic!("{other:?}"),
    };
    assert_eq!((resumed.time_ns, resumed.hostname.as_str()), (1_700_000_000_000_000_000, "mayfly"));
    assert_eq!(resumed.network, "mayfly.mac=02:00:00:00:00:05 mayfly.address=10.87.0.2/16");
    assert_eq!((resumed.boot_id[15], resumed.entropy.len()), (15, 32));
    let moved = match parse(&packed("moved")).expect("a frame").message {
        FromHost::Moved(moved) => moved,
        other => panic!("{other:?}"),
    };
    assert_eq!((moved.time_ns, moved.hostname.as_str(), moved.network.as_str()), (1_700_000_000_000_000_000, "", ""));
    assert_eq!((moved.boot_id, &moved.entropy[..]), ([0; 16], &[7; 16][..]));
}

#[test]
fn the_agents_messages_are_packed_as_the_vectors_are() {
    let marker = "0123456789abcdef".repeat(4);
    let exit = Exit {
        step: 1,
        ended: Ended::Exited(101),
        limit: Limit::None,
        wall_us: 1_234_567,
        cpu_us: 1_000_000,
        peak_memory: 4 << 20,
        cut: [false, true],
    };
    let killed = Exit { ended: Ended::Signaled(9), limit: Limit::Wall, wall_us: 10_000_000, cpu_us: 9_900_000, cut: [true, false], ..exit };
    let absent = Exit { step: 0, ended: Ended::NotStarted(2), wall_us: 100, cpu_us: 0, peak_memory: 0, cut: [false; 2], ..exit };
    let any: Vec<u8> = (0..=255).collect();
    let head = CollectedHead { path: b"/work/out", mode: 0o100644, size: 3 };
    let said = [
        ("hello", 0, ToHost::Hello { version: "0.1.0", arch: "x86_64", boot_us: 812_345, end_marker: &marker }),
        ("stage", 7, ToHost::Stage { step: 0, name: "build" }),
        ("stdout", 7, ToHost::Output(StreamKind::Stdout, b"hello\n")),
        ("stdout-any-bytes", u32::MAX, ToHost::Output(StreamKind::Stdout, &any)),
        ("stderr", 7, ToHost::Output(StreamKind::Stderr, "größe\n".as_bytes())),
        ("exit", 7, ToHost::Exit(exit)),
        ("exit-limit", 7, ToHost::Exit(killed)),
        ("exit-not-started", 7, ToHost::Exit(absent)),
        ("done", 7, ToHost::Done),
        ("credit", 7, ToHost::Credit(65536)),
        ("collected-file", 7, ToHost::Collected { index: 0, head: Some(head), ends: true, last: false, data: b"abc" }),
        ("collected-piece", 7, ToHost::Collected { index: 1, head: None, ends: false, last: false, data: b"abc" }),
        ("collected-last", 7, ToHost::Collected { index: 1, head: None, ends: false, last: true, data: b"" }),
        ("error", 7, ToHost::Error(ErrorCode::StartRefused, "file 0: the path leaves /work")),
        ("loaded", 7, ToHost::Loaded),
        ("response", 7, response(u32::MAX - 1, ResponseKind::Answer, 1_234_567, "text/plain; charset=utf-8", 2, b"ok")),
        ("response-exception", 7, response(1, ResponseKind::Exception, 10, "application/json", 1 << 20, b"{")),
        ("response-empty", 7, response(1, ResponseKind::Answer, 0, "", 0, b"")),
    ];
    for (name, run, message) in &said {
        assert_eq!(pack(*run, message), packed(name), "{name}");
    }
    let vectors = vectors();
    assert_eq!(vectors.iter().filter(|vector| vector.verdict == "ok" && vector.packed[0] >= 0x80).count(), said.len());
}
