"""Hostile snippets: what each tries, and the ends that it may come to.

Those in Python try one thing after another and print a line for each: `refused` with the error, or
THROUGH where it worked and must not have. Their calls go by number, as libc has no name for most.
"""

import dataclasses
from collections.abc import Mapping

THROUGH = "GOT THROUGH"
LIMITED = frozenset({"limit: wall", "limit: cpu", "limit: memory", "limit: processes", "limit: file_size"})
ENDED = frozenset({"ok", "failed", "signal"}) | LIMITED
BUILD_ENDED = frozenset({"build_failed", "failed", "signal"}) | LIMITED
MIB = 1 << 20
RUN = {"memory": 64 * MIB, "processes": 32, "output": 64 * 1024}
BRIEF_S, PATIENT_S = 1.0, 10.0
"""Wall-clock limits of what goes on for ever, and of what comes to its own end. The emulated host
makes them five times as long.
"""
BUILD = {"wall_s": 3.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attack:
    """One snippet.

    Attributes:
        tries: in words, for the report.
        ends: what may become of it: a status, of `limit` with the limit's name.
        files: besides the source.
        limits: of its steps, as a request has them.
    """

    name: str
    tries: str
    source: str
    ends: frozenset[str] = frozenset({"ok"})
    language: str = "python"
    limits: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=lambda: {"run": {**RUN, "wall_s": PATIENT_S}})


HEAD = """
import ctypes, errno, os, socket, sys

libc = ctypes.CDLL(None, use_errno=True)
ARM = os.uname().machine == "aarch64"
NUMBERS = dict(
    ptrace=(101, 117), process_vm_readv=(310, 270), init_module=(175, 105), finit_module=(313, 273), delete_module=(176, 106),
    kexec_load=(246, 104), kexec_file_load=(320, 294), reboot=(169, 142), bpf=(321, 280), io_uring_setup=(425, 425),
    userfaultfd=(323, 282), perf_event_open=(298, 241), mount=(165, 40), swapon=(167, 224), acct=(163, 89), syslog=(103, 116),
    clock_settime=(227, 112), sethostname=(170, 161), mknodat=(259, 33), open_by_handle_at=(304, 265), setns=(308, 268),
    unshare=(272, 97), chroot=(161, 51), iopl=(172, -1), ioperm=(173, -1), setuid=(105, 146), sched_setscheduler=(144, 119),
)


def call(name, *arguments):
    number = NUMBERS[name][ARM]
    if number < 0:
        raise OSError(errno.ENOSYS, "not of this processor")
    kept = [each if not isinstance(each, int) else ctypes.c_long(each) for each in arguments]
    got = libc.syscall(ctypes.c_long(number), *kept)
    if got < 0:
        raise OSError(ctypes.get_errno(), name)
    return got


def attempt(what, do, *arguments):
    try:
        got = do(*arguments)
    except OSError as error:
        print(f"{what}: refused ({errno.errorcode.get(error.errno, error)})")
    except Exception as error:
        print(f"{what}: refused ({error!r})"[:200])
    else:
        print(f"GOT THROUGH: {what}: {got!r}"[:200])


def read(path, size=64):
    with open(path, "rb") as file:
        return file.read(size)


def write(path, data=b"x"):
    with open(path, "r+b", buffering=0) as file:
        return file.write(data)

"""
PRIVILEGED = """
text = ctypes.c_char_p
attempt("init_module", call, "init_module", text(b"\\x7fELF" + bytes(200)), 204, text(b""))
attempt("finit_module", call, "finit_module", os.open("/proc/self/exe", os.O_RDONLY), text(b""), 0)
attempt("delete_module", call, "delete_module", text(b"virtio"), 0)
attempt("kexec_load", call, "kexec_load", 0, 0, None, 0)
attempt("kexec_file_load", call, "kexec_file_load", os.open("/proc/self/exe", os.O_RDONLY), -1, 1, text(b""), 4)
attempt("reboot", call, "reboot", 0xFEE1DEAD, 672274793, 0x1234567, None)
attempt("power off", call, "reboot", 0xFEE1DEAD, 672274793, 0x4321FEDC, None)
attempt("iopl", call, "iopl", 3)
attempt("ioperm", call, "ioperm", 0x3F8, 8, 1)
attempt("swapon", call, "swapon", text(b"/dev/vda"), 0)
attempt("acct", call, "acct", text(b"/tmp/acct"))
attempt("clock_settime", call, "clock_settime", 0, (ctypes.c_long * 2)(0, 0))
attempt("open_by_handle_at", call, "open_by_handle_at", 3, (ctypes.c_int * 8)(8, 1), os.O_RDONLY)
attempt("bpf", call, "bpf", 5, (ctypes.c_long * 16)(), 128)
attempt("io_uring_setup", call, "io_uring_setup", 8, (ctypes.c_char * 256)())
attempt("userfaultfd", call, "userfaultfd", 0)
attempt("a device of its own", call, "mknodat", -100, text(b"/tmp/mem"), 0o020666, 0x101)
"""


def python(name: str, tries: str, body: str, ends: frozenset[str] = frozenset({"ok"}), **limits: float) -> Attack:
    wall_s = BRIEF_S if "limit: wall" in ends else PATIENT_S
    return Attack(name=name, tries=tries, source=HEAD + body, ends=ends, limits={"run": {**RUN, "wall_s": wall_s, **limits}})


PYTHON = (
    python(
        "fork bomb",
        "fork for ever",
        """
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
        LIMITED,
    ),
    python(
        "thread bomb",
        "start threads for ever",
        """
import threading, time
while True:
    try:
        threading.Thread(target=time.sleep, args=(99,)).start()
    except RuntimeError:
        pass
""",
        LIMITED,
    ),
    python(
        "memory",
        "take memory for ever",
        """
all = []
while True:
    all.append(b'x' * (1 << 20))
""",
        frozenset({"limit: memory"}),
    ),
    python(
        "shared memory",
        "fill every folder that is memory",
        """
for folder in ('/dev/shm', '/tmp', '/work', '/run', '/var/tmp'):
    try:
        file = open(folder + '/full', 'wb', buffering=0)
        while True:
            file.write(bytes(1 << 20))
    except OSError as error:
        print(folder, errno.errorcode[error.errno])
""",
        frozenset({"ok", "limit: memory", "limit: file_size"}),
    ),
    python(
        "files",
        "make files and folders for ever",
        """
number = 0
while True:
    os.makedirs(f'{number}/a/b/c')
    open(f'{number}/a/b/c/d', 'w').close()
    number += 1
""",
        LIMITED | {"failed"},
    ),
    python(
        "output flood",
        "print for ever, to both streams",
        """
while True:
    os.write(1, b'x' * 65536)
    os.write(2, b'y' * 65536)
""",
        LIMITED,
    ),
    python(
        "spin",
        "use the processor for ever, and raise its priority",
        """
attempt('nice', os.nice, -20)
attempt('real time', call, 'sched_setscheduler', 0, 1, (ctypes.c_int * 1)(99))
sys.stdout.flush()
while True: pass
""",
        LIMITED,
    ),
    python(
        "descriptors",
        "open files for ever",
        """
kept = []
while True:
    try:
        kept.append(os.pipe())
    except OSError as error:
        print(2 * len(kept), 'descriptors, then', errno.errorcode[error.errno])
        break
""",
    ),
    python(
        "signals",
        "kill all that it may, and init",
        """
attempt('init', os.kill, 1, 9)
sys.stdout.flush()
os.kill(-1, 9)
print('alone')
""",
    ),
    python(
        "outliving",
        "leave processes behind that hold its output",
        """
for _ in range(8):
    if os.fork() == 0:
        os.setsid()
        import time
        time.sleep(999)
print('left')
""",
    ),
    python(
        "sockets",
        "reach the host, its neighbours and the Internet",
        """
for host in ('10.0.2.2', '10.87.0.1', '169.254.169.254', '192.168.0.1', '8.8.8.8', '2001:4860:4860::8888'):
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    with socket.socket(family) as tried:
        tried.settimeout(1)
        attempt(host, tried.connect, (host, 80))
for name, family, kind in (('packet', 17, 3), ('raw IP', 2, 3), ('vsock', 40, 1), ('bluetooth', 31, 3), ('key', 15, 3), ('alg', 38, 5)):
    attempt(f'{name} socket', socket.socket, family, kind)
""",
    ),
    python(
        "ptrace",
        "trace and read other processes",
        """
for pid in sorted({1, os.getppid()}):
    attempt(f'attach {pid}', call, 'ptrace', 16, pid, 0, 0)
    attempt(f'memory of {pid}', read, f'/proc/{pid}/mem')
    attempt(f'environment of {pid}', read, f'/proc/{pid}/environ')
    attempt(f'descriptors of {pid}', os.listdir, f'/proc/{pid}/fd')
    vector = (ctypes.c_long * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
    attempt(f'process_vm_readv {pid}', call, 'process_vm_readv', pid, vector, 1, vector, 1, 0)
""",
    ),
    python(
        "/proc and /sys",
        "read the kernel, change its settings",
        """
for path in ('/proc/kcore', '/dev/mem', '/dev/kmem', '/dev/port', '/proc/kpageflags', '/sys/kernel/debug/kvm', '/dev/kmsg'):
    attempt(path, read, path)
for path in ('/proc/sysrq-trigger', '/proc/sys/kernel/core_pattern', '/proc/sys/kernel/modprobe', '/proc/sys/vm/overcommit_memory',
             '/proc/1/oom_score_adj', '/sys/power/state', '/proc/sys/kernel/panic', '/sys/kernel/uevent_helper'):
    attempt(path, write, path)
attempt('own OOM score', write, '/proc/self/oom_score_adj', b'-1000')
""",
    ),
    python(
        "privileged calls",
        "load modules, kexec, reboot, reach ports, set the clock",
        PRIVILEGED,
    ),
    python(
        "privileged calls as root of a namespace",
        "the same as root of a user namespace of its own",
        """
attempt('setuid 0', call, 'setuid', 0)
try:
    print('unshare', call('unshare', 0x10000000))
except OSError as error:
    print('unshare', error)
"""
        + PRIVILEGED,
    ),
    python(
        "raw devices",
        "open every device for writing",
        """
harmless = {'null', 'zero', 'full', 'random', 'urandom', 'tty', 'ptmx'}
for folder, _, names in os.walk('/dev'):
    for name in sorted(names):
        path = os.path.join(folder, name)
        if name not in harmless and not os.path.islink(path) and not folder.startswith('/dev/pts'):
            attempt(path, os.open, path, os.O_RDWR | os.O_NONBLOCK)
""",
    ),
    python(
        "frames",
        "speak for the agent: its frames as output, its channel as a file",
        """
os.write(1, b'\\xc0' + bytes(range(256)) + b'\\xc0' * 64)
for number in range(3, 64):
    try:
        print('GOT THROUGH: descriptor', number, os.readlink(f'/proc/self/fd/{number}'))
    except OSError:
        pass
for path in ('/dev/vport0p0', '/dev/vport0p1', '/dev/hvc0', '/dev/ttyS0', '/dev/ttyS1', '/dev/ttyAMA0'):
    attempt(path, write, path)
""",
    ),
    python(
        "the image",
        "change what a later run would find",
        """
for path in ('/init', '/etc/passwd', '/usr/bin/python3', '/mayfly', '/usr/lib/x'):
    attempt(path, open, path, 'ab')
attempt('chroot', call, 'chroot', ctypes.c_char_p(b'/tmp'))
attempt('mount', call, 'mount', ctypes.c_char_p(b'none'), ctypes.c_char_p(b'/tmp'), ctypes.c_char_p(b'tmpfs'), 0, None)
attempt('host name', call, 'sethostname', ctypes.c_char_p(b'x'), 1)
""",
    ),
)


def bomb(language: str, tries: str, source: str, step: str = "build") -> Attack:
    """`step`: in which of the language's it is compiled."""
    return Attack(name=f"compile bomb, {language}", tries=tries, source=source, ends=BUILD_ENDED, language=language, limits={step: BUILD})


CPP = """template<int N, int M> struct F { static const int v = F<N - 1, M * 2>::v + F<N - 1, M * 2 + 1>::v; };
template<int M> struct F<0, M> { static const int v = M; };
int main() { return F<28, 1>::v; }
"""
JAVA = (
    "import java.util.concurrent.Callable; import java.util.function.Supplier;\npublic class Main {\n"
    "  static <T> T m(Callable<T> c) { return null; }\n  static <T> T m(Supplier<T> s) { return null; }\n"
    "  public static void main(String[] args) { Object o = " + "m(() -> " * 24 + "1" + ")" * 24 + "; }\n}\n"
)
COMPILED = (
    bomb("python", "an expression of half a million terms", "x = " + "1+" * 500_000 + "1\n"),
    bomb("rust", "a macro that doubles its tokens", "macro_rules! b { ($($t:tt)*) => { b!{ $($t)* $($t)* } } }\nb!{ x }\nfn main() {}\n"),
    Attack(
        name="endless file, rust",
        tries="include a file without end",
        source='static B: &[u8] = include_bytes!("/dev/zero");\nfn main() { println!("{}", B.len()); }\n',
        ends=BUILD_ENDED,
        language="rust",
        limits={"build": {**BUILD, "memory": 192 * MIB}},
    ),
    bomb("c", "an object file of 256 GiB", "char bomb[1UL << 38] = {1};\nint main(void) { return bomb[9]; }\n"),
    bomb("cpp", "2^28 templates", CPP),
    bomb(
        "go",
        "an array of 32 GiB in the program",
        "package main\n\nvar bomb = [1 << 35]byte{1<<35 - 1: 1}\n\nfunc main() { println(bomb[9]) }\n",
    ),
    bomb("java", "24 nested lambdas with two overloads each", JAVA),
    bomb("javascript", "a source that doubles itself", "let s = '1'; for (;;) { s = s + '+' + s; new Function(s); }\n", step="run"),
    bomb("typescript", "a hundred thousand open brackets", "const x: unknown = " + "[" * 100_000 + ";\n"),
)
ATTACKS = (*PYTHON, *COMPILED)
