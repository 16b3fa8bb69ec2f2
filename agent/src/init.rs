//! What only a machine's PID 1 does: mounts, standard descriptors, the network's loopback, finding the channel, a new identity.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::io::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::frame::Resumed;
use crate::network;
use crate::sys::{self, PollSet, MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID};
use crate::workspace::{User, WORK};

const END_MARKER: &str = "/mayfly/end";
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// A device that the kernel finds at all is there long before.
const DEVICE_PATIENCE: Duration = Duration::from_secs(20);

/// What the kernel gives us to see of it: source and type, place, flags, options.
const SYSTEM_MOUNTS: [(&str, &str, u64, &str); 5] = [
    ("devtmpfs", "/dev", MS_NOSUID | MS_NOEXEC, "mode=0755"),
    ("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""),
    ("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, ""),
    ("cgroup2", CGROUP_ROOT, MS_NOSUID | MS_NODEV | MS_NOEXEC, ""),
    ("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "mode=0620,ptmxmode=0666"),
];
/// Where any user may leave files; mounted anew for every run.
const SHARED_PLACES: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// Make the machine a place where programs can run. Only `prepare_descriptors` makes it possible to say anything.
pub fn set_up(user: User) -> io::Result<()> {
    for (index, (kind, place, flags, options)) in SYSTEM_MOUNTS.iter().enumerate() {
        fs::create_dir_all(place)
            .and_then(|()| sys::mount(Path::new(kind), Path::new(place), kind, *flags, options))
            .map_err(within(place))?;
        if index == 0 {
            prepare_descriptors()?;
        }
    }
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        std::os::unix::fs::symlink(target, Path::new("/dev").join(link)).map_err(within(link))?;
    }
    for place in SHARED_PLACES.iter().chain(&[WORK]) {
        fs::create_dir_all(place).map_err(within(place))?;
    }
    mount_places(user)?;
    // Of all processes the kernel takes this one last.
    fs::write("/proc/self/oom_score_adj", "-1000").map_err(within("oom_score_adj"))?;
    sys::forbid_tracing()?;
    sys::raise_loopback().map_err(within("lo"))?;
    network::set_up().map_err(within("network"))?;
    sys::set_hostname("mayfly")
}

/// /dev/null as standard input, the kernel's log as output and error; the kernel may have started us with none of the three.
fn prepare_descriptors() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let log = OpenOptions::new().write(true).open("/dev/kmsg")?;
    for (fd, file) in [(0, &null), (1, &log), (2, &log)] {
        if file.as_raw_fd() != fd {
            sys::duplicate_onto(file, fd)?;
        }
    }
    // Where one of the two took a standard descriptor's place itself, it has to stay.
    for file in [null, log] {
        if file.as_raw_fd() <= 2 {
            std::mem::forget(file);
        }
    }
    Ok(())
}

fn mount_places(user: User) -> io::Result<()> {
    for place in SHARED_PLACES {
        sys::mount(Path::new("tmpfs"), Path::new(place), "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777").map_err(within(place))?;
    }
    let options = format!("mode=0755,uid={},gid={}", user.uid, user.gid);
    sys::mount(Path::new("tmpfs"), Path::new(WORK), "tmpfs", MS_NOSUID | MS_NODEV, &options).map_err(within(WORK))
}

/// Empty every place that a run may have written to, however deep or full it is: fresh mounts take their place.
pub fn renew_places(user: User) -> io::Result<()> {
    for place in SHARED_PLACES.iter().chain(&[WORK]) {
        sys::unmount(Path::new(place)).map_err(within(place))?;
    }
    mount_places(user)
}

pub fn cgroup_root() -> &'static Path {
    Path::new(CGROUP_ROOT)
}

/// The content of the image's last file; without it the root is incomplete.
pub fn end_marker() -> io::Result<String> {
    let text = fs::read_to_string(END_MARKER).map_err(within("the root is incomplete: /mayfly/end"))?;
    Ok(text.trim_end().to_string())
}

/// Open the channel that the kernel's command line names: `mayfly.channel=serial:DEVICE` or `mayfly.channel=virtio:PORT NAME`.
pub fn open_channel() -> io::Result<OwnedFd> {
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    let value = cmdline.split_whitespace().find_map(|word| word.strip_prefix("mayfly.channel="));
    let value = value.ok_or_else(|| failure("the kernel's command line has no mayfly.channel=".into()))?;
    match value.split_once(':') {
        Some(("serial", device)) => open_serial(Path::new(device)).map_err(within(device)),
        Some(("virtio", name)) => open_port(name).map_err(within(name)),
        _ => Err(failure(format!("mayfly.channel={value} is neither serial:DEVICE nor virtio:NAME"))),
    }
}

fn open_serial(device: &Path) -> io::Result<OwnedFd> {
    let tty = OpenOptions::new().read(true).write(true).custom_flags(sys::O_NOCTTY | sys::O_NONBLOCK).open(device)?;
    sys::make_raw(&tty)?;
    keep_private(device)?;
    Ok(tty.into())
}

fn open_port(name: &str) -> io::Result<OwnedFd> {
    let device = wait_for_port(name)?;
    let mut port = OpenOptions::new().read(true).write(true).open(&device)?;
    keep_private(&device)?;
    // Until the host has opened its end a read gives 0 bytes, as at the end of the stream. A write waits for the host; an END says nothing.
    port.write_all(&[crate::slip::END])?;
    Ok(port.into())
}

/// No program of a run may open the channel.
fn keep_private(device: &Path) -> io::Result<()> {
    fs::set_permissions(device, Permissions::from_mode(0o600))
}

fn wait_for_port(name: &str) -> io::Result<PathBuf> {
    // Before the first look, so that nothing that comes in between is missed.
    let mut events = sys::watch_devices()?;
    let end = Instant::now() + DEVICE_PATIENCE;
    loop {
        if let Some(device) = find_port(name) {
            return Ok(device);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(failure(format!("no virtio port of this name came within {} s", DEVICE_PATIENCE.as_secs())));
        }
        let mut set = PollSet::default();
        set.add(&events, sys::POLLIN);
        set.wait(Some(left))?;
        // One event a read. Whatever it says, look again; events that were lost leave an error here, and are as good.
        let _ = events.read(&mut [0; 4096]);
    }
}

fn find_port(name: &str) -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let named = |port: &fs::DirEntry| fs::read_to_string(port.path().join("name")).map_or(false, |text| text.trim_end() == name);
    let device = Path::new("/dev").join(ports.flatten().find(named)?.file_name());
    device.exists().then_some(device)
}

/// Put a new identity in force: entropy first, so that nothing random is drawn before.
pub fn resume(resumed: &Resumed) -> io::Result<()> {
    sys::add_entropy(&File::open("/dev/urandom")?, &resumed.entropy).map_err(within("entropy"))?;
    sys::set_wall_clock(Duration::from_nanos(resumed.time_ns)).map_err(within("wall clock"))?;
    sys::set_hostname(&resumed.hostname).map_err(within("host name"))?;
    set_boot_id(resumed.boot_id).map_err(within(BOOT_ID))
}

/// The kernel refuses writes to its boot id, so a file is mounted over it.
fn set_boot_id(id: [u8; 16]) -> io::Result<()> {
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = format!("{}-{}-{}-{}-{}\n", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    let file = Path::new("/dev/.boot_id");
    fs::write(file, text)?;
    fs::set_permissions(file, Permissions::from_mode(0o444))?;
    // Fails if there is none from an earlier restore.
    let _ = sys::unmount(Path::new(BOOT_ID));
    sys::mount(file, Path::new(BOOT_ID), "", MS_BIND, "")?;
    fs::remove_file(file)
}

fn failure(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::Other, text)
}

/// Name what an error is about.
fn within(place: &str) -> impl Fn(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{place}: {error}"))
}
