//! Columns for people, and the one line `ps` has for a process.
//!
//! Must not know: containers.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::unistd::{Pid, SysconfVar, sysconf};

/// The columns of [`process`].
pub const PS_HEADER: [&str; 8] = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];

/// Left-aligned columns, three blanks apart; the last one as long as it is.
pub fn render(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let all: Vec<Vec<String>> = std::iter::once(header.iter().map(|h| h.to_string()).collect())
        .chain(rows)
        .collect();
    let width = |column: usize| {
        all.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut out = String::new();
    for row in &all {
        for (column, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if column + 1 < row.len() {
                let gap = widths.get(column).copied().unwrap_or(0) - cell.chars().count() + 3;
                out.extend(std::iter::repeat_n(' ', gap));
            }
        }
        out.push('\n');
    }
    out
}

/// `ps -ef`'s line for a process; `None` once it is gone.
pub fn process(pid: Pid) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let name = &stat[open + 1..close];
    let fields: Vec<&str> = stat.get(close + 2..)?.split(' ').collect();
    let number = |index: usize| {
        fields
            .get(index)
            .and_then(|f| f.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let hertz = sysconf(SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .unwrap_or(100)
        .max(1) as u64;
    let cpu_s = (number(11) + number(12)) / hertz;
    let uid = fs::read_to_string(format!("/proc/{pid}/status"))
        .ok()?
        .lines()
        .find_map(|line| {
            line.strip_prefix("Uid:")?
                .split_whitespace()
                .next()?
                .parse::<u32>()
                .ok()
        })?;
    let user = user_name(uid).unwrap_or_else(|| uid.to_string());
    let mut command = fs::read(format!("/proc/{pid}/cmdline"))
        .map(|bytes| {
            String::from_utf8_lossy(&bytes)
                .trim_end_matches('\0')
                .replace('\0', " ")
        })
        .unwrap_or_default();
    if command.is_empty() {
        command = format!("[{name}]");
    }
    let tty = number(4);
    let tty = match (tty >> 8 & 0xfff, tty & 0xff) {
        (0, 0) => "?".into(),
        (136..=143, minor) => format!("pts/{minor}"),
        (4, minor) => format!("tty{minor}"),
        (major, minor) => format!("{major}:{minor}"),
    };
    let started = boot_time()? + Duration::from_secs(number(19) / hertz);
    let started: chrono::DateTime<chrono::Local> = started.into();
    let recent = SystemTime::now()
        .duration_since(started.into())
        .is_ok_and(|age| age < Duration::from_secs(24 * 3600));
    Some(vec![
        user,
        pid.to_string(),
        fields.get(1)?.to_string(),
        "0".into(),
        started
            .format(if recent { "%H:%M" } else { "%b%d" })
            .to_string(),
        tty,
        format!(
            "{:02}:{:02}:{:02}",
            cpu_s / 3600,
            cpu_s / 60 % 60,
            cpu_s % 60
        ),
        command,
    ])
}

/// From /etc/passwd alone: this program is linked statically and has no name services.
fn user_name(uid: u32) -> Option<String> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let uid = uid.to_string();
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_string())
    })
}

fn boot_time() -> Option<SystemTime> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let seconds = stat
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())?;
    Some(UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let text = render(
            &["ID", "X"],
            vec![
                vec!["abc".into(), "1".into()],
                vec!["a".into(), "22".into()],
            ],
        );
        assert_eq!(text, "ID    X\nabc   1\na     22\n");
    }

    #[test]
    fn our_own_line() {
        let row = process(Pid::this()).expect("alive");
        assert_eq!(row.len(), PS_HEADER.len());
        assert_eq!(row[1], std::process::id().to_string());
    }
}
