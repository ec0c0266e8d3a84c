//! How much memory this process may use, as the system tells it.

/// The limit of this process's control group, or the machine's memory if that is less, in bytes. `None` if neither can be read.
pub fn limit() -> Option<usize> {
    let control_group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok())
        // "max" in version 2; version 1 says a number beyond any machine.
        .and_then(|text| text.trim().parse::<usize>().ok());
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    match (control_group, machine) {
        (Some(group), Some(machine)) => Some(group.min(machine)),
        (group, machine) => group.or(machine),
    }
}

fn total(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::{limit, total};

    #[test]
    fn the_machine_is_read_in_bytes() {
        assert_eq!(total("MemFree: 5 kB\nMemTotal:       24638828 kB\n"), Some(24_638_828 * 1024));
        assert_eq!(total("nothing"), None);
    }

    #[test]
    fn there_is_a_limit() {
        assert!(limit().is_some_and(|bytes| bytes > 1 << 20));
    }
}
