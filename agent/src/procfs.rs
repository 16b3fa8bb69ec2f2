//! What /proc tells: the processes that descend from the agent, for where a step has no cgroup to ask; the machine's memory.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::Duration;

/// USER_HZ, the unit of times in /proc, is the same on every Linux.
const TICK: Duration = Duration::from_millis(10);

pub struct Process {
    pub pid: i32,
    parent: i32,
    /// With that of the children that it has waited for.
    pub cpu: Duration,
}

impl Process {
    /// Parse /proc/PID/stat: pid (name) state parent ...; the name may hold anything, so fields are counted from its end.
    fn parse(stat: &str) -> Option<Process> {
        let pid = stat.split(' ').next()?.parse().ok()?;
        let fields: Vec<&str> = stat.rsplit(") ").next()?.split(' ').collect();
        let ticks: u32 = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u32>().ok()).sum();
        Some(Process { pid, parent: fields.get(1)?.parse().ok()?, cpu: TICK * ticks })
    }
}

/// All descendants that are alive or not yet reaped. Orphans are among them, for they are our own children.
pub fn descendants() -> Vec<Process> {
    descendants_of(std::process::id() as i32)
}

/// The same of another process.
pub fn descendants_of(pid: i32) -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let stats = pids.filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    let processes: Vec<Process> = stats.filter_map(|stat| Process::parse(&stat)).collect();
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for process in &processes {
        children.entry(process.parent).or_default().push(process.pid);
    }
    let mut found = HashSet::new();
    let mut waiting = vec![pid];
    while let Some(pid) = waiting.pop() {
        // A pid that is used again while we look could close a circle; none is followed twice.
        waiting.extend(children.remove(&pid).into_iter().flatten().filter(|&child| found.insert(child)));
    }
    processes.into_iter().filter(|process| found.contains(&process.pid)).collect()
}

/// Bytes of memory that the kernel gives programs altogether.
pub fn total_memory() -> Option<u64> {
    memory("MemTotal:")
}

/// Bytes of memory that programs could have now.
pub fn available_memory() -> Option<u64> {
    memory("MemAvailable:")
}

fn memory(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_cannot_deceive() {
        let process = Process::parse("12 (a) S 1 (b) R 7 1 1 0 -1 4194304 1 0 0 0 3 4 5 6 20 0 1 0 100 0").expect("a process");
        assert_eq!((process.pid, process.parent, process.cpu), (12, 7, Duration::from_millis(180)));
        assert!(Process::parse("").is_none());
        assert!(Process::parse("12 (a) S 1").is_none());
    }

    #[test]
    fn a_child_is_found_until_it_is_reaped() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
        let pid = child.id() as i32;
        assert!(descendants().iter().any(|process| process.pid == pid));
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(!descendants().iter().any(|process| process.pid == pid));
    }
}
