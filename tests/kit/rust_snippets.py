"""Twenty small Rust programs that a pruned image must still build: name -> source and what it
prints.
"""
# ruff: noqa: E501

SNIPPETS: dict[str, tuple[str, str]] = {
    "hello": ('fn main() { println!("hello"); }', "hello\n"),
    "hash map": (
        """
        use std::collections::HashMap;
        fn main() {
            let mut counts = HashMap::new();
            for word in "a b a c a".split(' ') { *counts.entry(word).or_insert(0) += 1; }
            println!("{} {}", counts["a"], counts.len());
        }
        """,
        "3 3\n",
    ),
    "sorted collections": (
        """
        use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
        fn main() {
            let set: BTreeSet<_> = [3, 1, 2].into_iter().collect();
            let map: BTreeMap<_, _> = set.iter().map(|n| (n, n * n)).collect();
            let mut heap: BinaryHeap<_> = set.iter().copied().collect();
            let queue: VecDeque<_> = (0..3).collect();
            println!("{set:?} {map:?} {:?} {queue:?}", heap.pop());
        }
        """,
        "{1, 2, 3} {1: 1, 2: 4, 3: 9} Some(3) [0, 1, 2]\n",
    ),
    "threads": (
        """
        use std::{sync::{mpsc, Arc, Mutex}, thread};
        fn main() {
            let total = Arc::new(Mutex::new(0));
            let workers: Vec<_> = (0..8).map(|n| { let total = Arc::clone(&total); thread::spawn(move || *total.lock().unwrap() += n) }).collect();
            for worker in workers { worker.join().unwrap(); }
            let (send, receive) = mpsc::channel();
            thread::scope(|scope| { scope.spawn(move || send.send(5).unwrap()); });
            println!("{} {}", total.lock().unwrap(), receive.recv().unwrap());
        }
        """,
        "28 5\n",
    ),
    "files": (
        """
        use std::{fs, io::{BufRead, BufReader, Write}};
        fn main() -> std::io::Result<()> {
            let mut file = fs::File::create("data.txt")?;
            writeln!(file, "one\\ntwo")?;
            let lines: Vec<_> = BufReader::new(fs::File::open("data.txt")?).lines().collect::<Result<_, _>>()?;
            fs::create_dir_all("x/y")?;
            fs::rename("data.txt", "x/y/z")?;
            println!("{lines:?} {}", fs::metadata("x/y/z")?.len());
            fs::remove_dir_all("x")
        }
        """,
        '["one", "two"] 8\n',
    ),
    "net": (
        """
        use std::{io::{Read, Write}, net::{TcpListener, TcpStream}, thread};
        fn main() {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let client = thread::spawn(move || TcpStream::connect(address).unwrap().write_all(b"over").unwrap());
            let mut text = String::new();
            listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
            client.join().unwrap();
            println!("{text}");
        }
        """,
        "over\n",
    ),
    "generics and traits": (
        """
        trait Area { fn area(&self) -> f64; }
        struct Square(f64);
        struct Circle { radius: f64 }
        impl Area for Square { fn area(&self) -> f64 { self.0 * self.0 } }
        impl Area for Circle { fn area(&self) -> f64 { std::f64::consts::PI * self.radius.powi(2) } }
        fn largest<T: PartialOrd + Copy>(items: &[T]) -> Option<T> { items.iter().copied().reduce(|a, b| if a > b { a } else { b }) }
        fn main() {
            let shapes: Vec<Box<dyn Area>> = vec![Box::new(Square(2.0)), Box::new(Circle { radius: 1.0 })];
            println!("{:.2} {:?}", shapes.iter().map(|s| s.area()).sum::<f64>(), largest(&['a', 'z', 'c']));
        }
        """,
        "7.14 Some('z')\n",
    ),
    "macros": (
        """
        macro_rules! maximum { ($x:expr) => { $x }; ($x:expr, $($rest:expr),+) => { { let r = maximum!($($rest),+); if $x > r { $x } else { r } } }; }
        fn main() { println!("{} {}", maximum!(1, 7, 3), concat!(stringify!(a b), line!() / line!())); }
        """.replace("line!() / line!()", '"!"'),
        "7 a b!\n",
    ),
    "derives": (
        """
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        struct Point { x: i32, y: i32 }
        fn main() { let p = Point { x: 1, ..Default::default() }; println!("{:?} {}", p.clone(), p > Point::default()); }
        """,
        "Point { x: 1, y: 0 } true\n",
    ),
    "iterators and closures": (
        """
        fn main() {
            let add = |n: u64| move |m: u64| n + m;
            let total: u64 = (1..=10).filter(|n| n % 2 == 0).map(add(1)).zip(0..).map(|(a, b)| a * b).sum();
            println!("{total} {}", "abc".chars().rev().collect::<String>());
        }
        """,
        "90 cba\n",
    ),
    "enums and matching": (
        """
        enum Tree { Leaf(i64), Node(Box<Tree>, Box<Tree>) }
        fn sum(tree: &Tree) -> i64 { match tree { Tree::Leaf(n @ 0..=9) => *n, Tree::Leaf(n) => n * 10, Tree::Node(l, r) => sum(l) + sum(r) } }
        fn main() { println!("{}", sum(&Tree::Node(Box::new(Tree::Leaf(4)), Box::new(Tree::Leaf(20))))); }
        """,
        "204\n",
    ),
    "errors": (
        """
        use std::{error::Error, fmt};
        #[derive(Debug)] struct Odd(u8);
        impl fmt::Display for Odd { fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result { write!(f, "{} is odd", self.0) } }
        impl Error for Odd {}
        fn parse(text: &str) -> Result<u8, Box<dyn Error>> { let n: u8 = text.parse()?; if n % 2 == 1 { Err(Odd(n).into()) } else { Ok(n) } }
        fn main() { for text in ["4", "5", "x"] { match parse(text) { Ok(n) => println!("{n}"), Err(e) => println!("{e}") } } }
        """,
        "4\n5 is odd\ninvalid digit found in string\n",
    ),
    "a panic that is caught": (
        """
        fn main() {
            std::panic::set_hook(Box::new(|_| {}));
            let caught = std::panic::catch_unwind(|| { let v: Vec<i32> = Vec::new(); v[std::env::args().count()] });
            println!("{}", caught.is_err());
        }
        """,
        "true\n",
    ),
    "shared ownership": (
        """
        use std::{cell::RefCell, rc::{Rc, Weak}};
        struct Node { children: RefCell<Vec<Rc<Node>>>, parent: RefCell<Weak<Node>> }
        fn main() {
            let child = Rc::new(Node { children: RefCell::default(), parent: RefCell::default() });
            let parent = Rc::new(Node { children: RefCell::new(vec![child.clone()]), parent: RefCell::default() });
            *child.parent.borrow_mut() = Rc::downgrade(&parent);
            println!("{} {} {}", Rc::strong_count(&child), Rc::weak_count(&parent), parent.children.borrow().len());
        }
        """,
        "2 1 1\n",
    ),
    "async by hand": (
        """
        use std::{future::Future, pin::pin, sync::Arc, task::{Context, Poll, Wake}};
        struct Nothing;
        impl Wake for Nothing { fn wake(self: Arc<Self>) {} }
        async fn twice(n: u32) -> u32 { n * 2 }
        fn main() {
            let waker = Arc::new(Nothing).into();
            let mut future = pin!(async { twice(4).await + twice(3).await });
            if let Poll::Ready(n) = future.as_mut().poll(&mut Context::from_waker(&waker)) { println!("{n}"); }
        }
        """,
        "14\n",
    ),
    "numbers": (
        """
        fn main() {
            println!("{} {:?} {} {:e}", u128::MAX, 200u8.checked_add(100), (2f64.sqrt() * 1e6).round(), 1234.5f32);
            println!("{:#x} {:08b} {}", 255, 5, i64::from_str_radix("-zz", 36).unwrap());
        }
        """,
        "340282366920938463463374607431768211455 None 1414214 1.2345e3\n0xff 00000101 -1295\n",
    ),
    "a process": (
        """
        use std::process::Command;
        fn main() {
            let output = Command::new("sh").args(["-c", "echo $((6 * 7)); ls / | head -n 1 | wc -l"]).output().unwrap();
            print!("{}", String::from_utf8(output.stdout).unwrap());
        }
        """,
        "42\n1\n",
    ),
    "C's library": (
        """
        use std::ffi::{c_char, CStr, CString};
        // edition: 2021, as 2024 wants unsafe before extern, which 1.63 does not know
        extern "C" { fn strlen(text: *const c_char) -> usize; fn getpid() -> i32; fn cos(x: f64) -> f64; }
        fn main() {
            let text = CString::new("four").unwrap();
            unsafe { println!("{} {} {} {:?}", strlen(text.as_ptr()), getpid() > 0, cos(0.0), CStr::from_ptr(text.as_ptr())); }
        }
        """,
        '4 true 1 "four"\n',
    ),
    "time and environment": (
        """
        use std::time::{Duration, Instant, SystemTime};
        fn main() {
            let start = Instant::now();
            std::thread::sleep(Duration::from_millis(1));
            println!("{} {} {}", start.elapsed() >= Duration::from_millis(1), SystemTime::now() > SystemTime::UNIX_EPOCH, std::env::var("PATH").is_ok());
        }
        """,
        "true true true\n",
    ),
    "unit tests": (
        """
        pub fn double(n: i32) -> i32 { n * 2 }
        #[test] fn doubles() { assert_eq!(double(2), 4); }
        #[test] #[should_panic] fn panics() { panic!(); }
        """,
        "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
    ),
}
