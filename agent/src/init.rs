//! What only a machine's PID 1 does: mounts, standard descriptors, the network's loopback, finding the channel, a new identity.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::io::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::door::Door;
use crate::frame::Identity;
use crate::log::complain;
use crate::network;
use crate::sys::{self, PollSet, MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID};
use crate::user::User;
use crate::workspace::WORK;

const END_MARKER: &str = "/mayfly/end";
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
const COMMAND_LINE: &str = "/proc/cmdline";
const HOSTS: &str = "/etc/hosts";
/// Where Debian has a machine's own name.
const OWN_ADDRESS: &str = "127.0.1.1";
/// Settings of the kernel. Its log is for root only, as on Debian: it tells of programs of earlier runs. And a port is free
/// once its last process has ended, where it would be kept for a minute, from the next run too.
const SETTINGS: [(&str, &str); 2] = [("/proc/sys/kernel/dmesg_restrict", "1"), ("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0")];
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Each write that waits to be read is a signal that waits; a small machine has room for fewer than two full pipes ask for.
const WAITING_SIGNALS: u64 = 4096;
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
    // As the root of a tmpfs it was everybody's.
    fs::set_permissions("/", Permissions::from_mode(0o755)).map_err(within("/"))?;
    mount_places(user)?;
    // Of all processes the kernel takes this one last.
    fs::write("/proc/self/oom_score_adj", "-1000").map_err(within("oom_score_adj"))?;
    sys::forbid_tracing()?;
    sys::limit(0, sys::RLIMIT_SIGPENDING, WAITING_SIGNALS, WAITING_SIGNALS).map_err(within("waiting signals"))?;
    for (place, value) in SETTINGS {
        if let Err(error) = fs::write(place, value) {
            complain(&format!("{place}: {error}"));
        }
    }
    sys::raise_loopback().map_err(within("lo"))?;
    set_hostname("mayfly")
}

/// Give the machine a name, which resolves to an address of its own.
fn set_hostname(name: &str) -> io::Result<()> {
    sys::set_hostname(name)?;
    let hosts = with_own_name(&fs::read_to_string(HOSTS).unwrap_or_default(), name);
    // An image may have no /etc at all; its programs do without the name.
    if let Err(error) = fs::write(HOSTS, hosts) {
        complain(&format!("{HOSTS}: {error}"));
    }
    Ok(())
}

/// A text as of /etc/hosts with the machine's own name in place of the one that it had.
fn with_own_name(hosts: &str, name: &str) -> String {
    let others = hosts.lines().filter(|line| line.split_whitespace().next() != Some(OWN_ADDRESS));
    let own = format!("{OWN_ADDRESS} {name}");
    others.chain([own.as_str()]).map(|line| format!("{line}\n")).collect()
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
    // System V's memory, semaphores and queues, and POSIX queues: those of the last namespace are gone with it.
    sys::renew_ipc().map_err(within("IPC namespace"))?;
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

/// Bring the network up if there is one, and open the channel, as the kernel's command line says: `mayfly.channel=serial:DEVICE`,
/// `mayfly.channel=virtio:PORT NAME`, or `mayfly.channel=tcp:PORT` with `mayfly.token=TEXT`.
pub fn open_channel() -> io::Result<OwnedFd> {
    let cmdline = fs::read_to_string(COMMAND_LINE)?;
    let word = |name: &str| cmdline.split_whitespace().find_map(|word| word.strip_prefix(name));
    let value = word("mayfly.channel=").ok_or_else(|| failure("the kernel's command line has no mayfly.channel=".into()))?;
    let carrier = value.split_once(':');
    // Open before the machine has an address, so that whoever comes to that is never refused.
    let door = match carrier {
        Some(("tcp", port)) => Some(open_door(port, word("mayfly.token=")).map_err(within(value))?),
        _ => None,
    };
    network::set_up(&cmdline).map_err(within("network"))?;
    match (carrier, door) {
        (Some(("serial", device)), _) => open_serial(Path::new(device)).map_err(within(device)),
        (Some(("virtio", name)), _) => open_port(name).map_err(within(name)),
        (_, Some(door)) => network::announce(&cmdline).and_then(|()| door.wait()).map_err(within(value)),
        _ => Err(failure(format!("mayfly.channel={value} is none of serial:DEVICE, virtio:NAME and tcp:PORT"))),
    }
}

fn open_door(port: &str, token: Option<&str>) -> io::Result<Door> {
    let port = port.parse().map_err(|_| failure("this is no port".into()))?;
    let token = token.ok_or_else(|| failure("the kernel's command line has no mayfly.token=".into()))?;
    // Where the token is to be read; the kernel's log, which begins with it, is for root only.
    cover(Path::new(COMMAND_LINE), "", 0o400)?;
    Door::open(port, token)
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

/// Put a new identity in force: entropy first, so that nothing random is drawn before. Without a host name the machine stays itself.
pub fn identify(identity: &Identity) -> io::Result<()> {
    sys::add_entropy(&File::open("/dev/urandom")?, &identity.entropy).map_err(within("entropy"))?;
    sys::set_wall_clock(Duration::from_nanos(identity.time_ns)).map_err(within("wall clock"))?;
    if !identity.hostname.is_empty() {
        set_hostname(&identity.hostname).map_err(within("host name"))?;
        set_boot_id(identity.boot_id).map_err(within(BOOT_ID))?;
    }
    network::set_up(&identity.network).map_err(within("network"))
}

/// The kernel refuses writes to its boot id, so a file is mounted over it.
fn set_boot_id(id: [u8; 16]) -> io::Result<()> {
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = format!("{}-{}-{}-{}-{}\n", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    // Fails if there is none from an earlier restore.
    let _ = sys::unmount(Path::new(BOOT_ID));
    cover(Path::new(BOOT_ID), &text, 0o444)
}

/// Mount a file with this text over another.
fn cover(place: &Path, text: &str, mode: u32) -> io::Result<()> {
    let file = Path::new("/dev/.cover");
    fs::write(file, text)?;
    fs::set_permissions(file, Permissions::from_mode(mode))?;
    sys::mount(file, place, "", MS_BIND, "")?;
    fs::remove_file(file)
}

fn failure(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::Other, text)
}

/// Name what an error is about.
fn within(place: &str) -> impl Fn(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{place}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_name_takes_the_place_of_the_last() {
        let hosts = with_own_name("127.0.0.1 localhost\n127.0.1.1\told alias\n127.0.1.10 other", "new");
        assert_eq!(hosts, "127.0.0.1 localhost\n127.0.1.10 other\n127.0.1.1 new\n");
        assert_eq!(with_own_name("", "a"), "127.0.1.1 a\n");
    }
}
