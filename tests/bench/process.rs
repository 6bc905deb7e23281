//! What processes use, read from /proc.

use std::time::Duration;

/// Processor time used so far, user and system, of all threads.
pub(crate) fn time(process: u32) -> Duration {
    ticks(&fields(process).expect("the process runs")[UTIME..=STIME])
}

/// The same with the time of its children, of those that ended too.
pub(crate) fn time_with_children(process: u32) -> Duration {
    let own = ticks(&fields(process).expect("the process runs")[UTIME..=CSTIME]);
    let folders = std::fs::read_dir("/proc").expect("Linux").flatten();
    let processes = folders.filter_map(|folder| folder.file_name().to_str()?.parse().ok());
    let children = processes.filter_map(fields).filter(|fields| fields[PARENT] == u64::from(process));
    children.fold(own, |sum, fields| sum + ticks(&fields[UTIME..=STIME]))
}

/// Resident memory in bytes.
pub(crate) fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// Fields of proc(5)'s /proc/PID/stat, counted from the state, which follows the name in parentheses.
const PARENT: usize = 1;
const UTIME: usize = 11;
const STIME: usize = 12;
const CSTIME: usize = 14;

fn fields(process: u32) -> Option<Vec<u64>> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    Some(stat.rsplit(')').next()?.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}

/// Ticks are hundredths of a second.
fn ticks(fields: &[u64]) -> Duration {
    Duration::from_millis(fields.iter().sum::<u64>() * 10)
}
