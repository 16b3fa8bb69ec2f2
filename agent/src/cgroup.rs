//! One cgroup (version 2) per step: what the step may use, what it has used, and a way to kill all of it at once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::frame::StepSpec;

/// The folder that steps' cgroups are made in.
pub struct Cgroups {
    folder: PathBuf,
    made: u64,
    owned: bool,
}

impl Cgroups {
    /// In a machine: the root of the hierarchy, with the controllers that its children need.
    pub fn of_machine(root: &Path) -> io::Result<Cgroups> {
        for controller in ["+pids", "+memory"] {
            fs::write(root.join("cgroup.subtree_control"), controller)?;
        }
        Ok(Cgroups { folder: root.to_path_buf(), made: 0, owned: false })
    }

    /// As an ordinary process: a folder of our own beneath our cgroup, if this host allows it. It may lack controllers.
    pub fn of_process() -> io::Result<Cgroups> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mount = mounts.lines().map(|line| line.split(' ')).find_map(|mut fields| {
            let path = fields.nth(1)?;
            (fields.next()? == "cgroup2").then(|| path.to_string())
        });
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let (mount, own) = mount.zip(own).ok_or(io::ErrorKind::NotFound)?;
        let folder = Path::new(&mount).join(own).join(format!("mayfly-agent-{}", std::process::id()));
        fs::create_dir(&folder)?;
        for controller in ["+pids", "+memory"] {
            // Where the host has them in use elsewhere there are none for us; rlimits stand in for them.
            let _ = fs::write(folder.join("cgroup.subtree_control"), controller);
        }
        Ok(Cgroups { folder, made: 0, owned: true })
    }

    /// Make the cgroup of a step.
    pub fn make(&mut self, spec: &StepSpec) -> io::Result<Cgroup> {
        let path = self.folder.join(format!("step-{}", self.made));
        self.made += 1;
        fs::create_dir(&path)?;
        let cgroup = Cgroup { path };
        cgroup.limit(spec)?;
        Ok(cgroup)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        if self.owned {
            let _ = fs::remove_dir(&self.folder);
        }
    }
}

/// The cgroup of one step; removed when dropped, which has to be after its last process was reaped.
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Set what the step may use. Limits that the kernel has no controller for are left to rlimits.
    pub fn limit(&self, spec: &StepSpec) -> io::Result<()> {
        let text = |limit: u64| if limit > 0 { limit.to_string() } else { "max".to_owned() };
        if self.limits_processes() {
            self.set("pids.max", &text(spec.processes.into()))?;
        }
        if self.limits_memory() {
            self.set("memory.max", &text(spec.memory))?;
            self.set("memory.oom.group", "1")?;
            if self.has("memory.swap.max") {
                self.set("memory.swap.max", "0")?;
            }
        }
        Ok(())
    }

    fn has(&self, file: &str) -> bool {
        self.path.join(file).exists()
    }

    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.path.join(file), value)
    }

    /// A number that follows `key` in a file of lines `key value`; or the whole file's, for an empty key.
    fn number(&self, file: &str, key: &str) -> Option<u64> {
        let text = fs::read_to_string(self.path.join(file)).ok()?;
        if key.is_empty() {
            return text.trim().parse().ok();
        }
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
    }

    pub fn limits_processes(&self) -> bool {
        self.has("pids.max")
    }

    pub fn limits_memory(&self) -> bool {
        self.has("memory.max")
    }

    /// Open the file that a child writes itself into, with the rights that we have now.
    pub fn door(&self) -> io::Result<Door> {
        OpenOptions::new().write(true).open(self.path.join("cgroup.procs")).map(Door)
    }

    /// Kill every process in it. Forks under way are caught too: the kernel does that.
    pub fn kill(&self) -> io::Result<()> {
        self.set("cgroup.kill", "1")
    }

    pub fn processes(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    pub fn cpu(&self) -> Option<Duration> {
        self.number("cpu.stat", "usage_usec").map(Duration::from_micros)
    }

    pub fn peak_memory(&self) -> Option<u64> {
        self.number("memory.peak", "")
    }

    pub fn ran_out_of_memory(&self) -> bool {
        self.number("memory.events", "oom_kill").unwrap_or(0) > 0
    }

    pub fn refused_forks(&self) -> u64 {
        self.number("pids.events", "max").unwrap_or(0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

/// The way into a cgroup.
pub struct Door(File);

impl Door {
    /// Move the calling process in.
    pub fn enter(&mut self) -> io::Result<()> {
        self.0.write_all(b"0\n")
    }
}
