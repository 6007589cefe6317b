//! `docker top`: what `ps` would say of the sandbox' processes, read from `/proc`. Nothing is executed.
//!
//! Understood: nothing, `-e`, `-f`, `-F`, `-l` and their combinations; `a`, `u`, `x` and theirs; `-o`/`o`/`--format` with a list of
//! columns, each with `=TITLE` if wanted. Docker needs a PID column; like `ps`, so do we show one in every ready-made form.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use caisson_protocol::{Error, ProcessTable, Response};
use nix::unistd::Pid;

use crate::jail_error;
use crate::supervisor::Supervisor;

/// The kernel counts processor time for user space in hundredths of a second (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

/// Bytes of all command lines together, and of one: a process can make its own as long as it likes (PR_SET_MM_MAP).
const COMMAND_LINES_BYTES: usize = 512 << 10;
const COMMAND_LINE_BYTES: std::ops::RangeInclusive<usize> = 64..=64 << 10;

impl Supervisor {
    pub(crate) fn process_table(&self, ps_args: &str) -> Result<Response, Error> {
        let columns = plan(ps_args)?;
        let mut pids = self.made()?.cgroup.pids().map_err(jail_error)?;
        pids.sort_unstable();
        let host = HostFacts::read();
        let share = COMMAND_LINES_BYTES / pids.len().max(1);
        let share = share.clamp(*COMMAND_LINE_BYTES.start(), *COMMAND_LINE_BYTES.end());
        // A process that ends meanwhile is not listed.
        let rows = pids
            .into_iter()
            .filter_map(|pid| Facts::read(pid, share))
            .map(|facts| {
                columns
                    .iter()
                    .map(|(_, column)| facts.cell(*column, &host))
                    .collect()
            });
        let rows = rows.collect();
        Ok(Response::Processes(ProcessTable {
            titles: columns.into_iter().map(|(title, _)| title).collect(),
            rows,
        }))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    User,
    Uid,
    Group,
    Gid,
    Pid,
    Ppid,
    Pgid,
    Sid,
    Threads,
    State,
    StateOnly,
    CpuInteger,
    CpuPercent,
    MemoryPercent,
    VirtualKib,
    ResidentKib,
    SizePages,
    Priority,
    Nice,
    Flags,
    Address,
    WaitChannel,
    StartShort,
    StartLong,
    Elapsed,
    ElapsedSeconds,
    Terminal,
    TimeLong,
    TimeShort,
    Processor,
    CommandLine,
    CommandName,
}

/// `ps` names, the title it prints, and what it is.
const COLUMNS: &[(&str, &str, Column)] = &[
    ("user", "USER", Column::User),
    ("euser", "EUSER", Column::User),
    ("uname", "USER", Column::User),
    ("uid", "UID", Column::Uid),
    ("euid", "EUID", Column::Uid),
    ("group", "GROUP", Column::Group),
    ("egroup", "EGROUP", Column::Group),
    ("gid", "GID", Column::Gid),
    ("egid", "EGID", Column::Gid),
    ("pid", "PID", Column::Pid),
    ("tgid", "TGID", Column::Pid),
    ("ppid", "PPID", Column::Ppid),
    ("pgid", "PGID", Column::Pgid),
    ("pgrp", "PGRP", Column::Pgid),
    ("sid", "SID", Column::Sid),
    ("sess", "SESS", Column::Sid),
    ("nlwp", "NLWP", Column::Threads),
    ("thcount", "THCNT", Column::Threads),
    ("stat", "STAT", Column::State),
    ("state", "S", Column::StateOnly),
    ("s", "S", Column::StateOnly),
    ("c", "C", Column::CpuInteger),
    ("%cpu", "%CPU", Column::CpuPercent),
    ("pcpu", "%CPU", Column::CpuPercent),
    ("%mem", "%MEM", Column::MemoryPercent),
    ("pmem", "%MEM", Column::MemoryPercent),
    ("vsz", "VSZ", Column::VirtualKib),
    ("vsize", "VSZ", Column::VirtualKib),
    ("rss", "RSS", Column::ResidentKib),
    ("rssize", "RSS", Column::ResidentKib),
    ("rsz", "RSZ", Column::ResidentKib),
    ("sz", "SZ", Column::SizePages),
    ("pri", "PRI", Column::Priority),
    ("ni", "NI", Column::Nice),
    ("nice", "NI", Column::Nice),
    ("f", "F", Column::Flags),
    ("wchan", "WCHAN", Column::WaitChannel),
    ("stime", "STIME", Column::StartShort),
    ("start", "STARTED", Column::StartShort),
    ("start_time", "START", Column::StartShort),
    ("lstart", "STARTED", Column::StartLong),
    ("etime", "ELAPSED", Column::Elapsed),
    ("etimes", "ELAPSED", Column::ElapsedSeconds),
    ("tty", "TT", Column::Terminal),
    ("tt", "TT", Column::Terminal),
    ("tname", "TTY", Column::Terminal),
    ("time", "TIME", Column::TimeLong),
    ("cputime", "TIME", Column::TimeLong),
    ("bsdtime", "TIME", Column::TimeShort),
    ("psr", "PSR", Column::Processor),
    ("cmd", "CMD", Column::CommandLine),
    ("args", "COMMAND", Column::CommandLine),
    ("command", "COMMAND", Column::CommandLine),
    ("comm", "COMMAND", Column::CommandName),
    ("ucmd", "CMD", Column::CommandName),
];

type Columns = Vec<(String, Column)>;

fn titled(columns: &[(&str, Column)]) -> Columns {
    columns
        .iter()
        .map(|(title, column)| (title.to_string(), *column))
        .collect()
}

/// What `ps aux` prints.
const USER: &[(&str, Column)] = &[
    ("USER", Column::User),
    ("PID", Column::Pid),
    ("%CPU", Column::CpuPercent),
    ("%MEM", Column::MemoryPercent),
    ("VSZ", Column::VirtualKib),
    ("RSS", Column::ResidentKib),
    ("TTY", Column::Terminal),
    ("STAT", Column::State),
    ("START", Column::StartShort),
    ("TIME", Column::TimeShort),
    ("COMMAND", Column::CommandLine),
];

/// What `ps -F` prints.
const EXTRA: &[(&str, Column)] = &[
    ("UID", Column::User),
    ("PID", Column::Pid),
    ("PPID", Column::Ppid),
    ("C", Column::CpuInteger),
    ("SZ", Column::SizePages),
    ("RSS", Column::ResidentKib),
    ("PSR", Column::Processor),
    ("STIME", Column::StartShort),
    ("TTY", Column::Terminal),
    ("TIME", Column::TimeLong),
    ("CMD", Column::CommandLine),
];

/// What `ps -l` prints.
const LONG: &[(&str, Column)] = &[
    ("F", Column::Flags),
    ("S", Column::StateOnly),
    ("UID", Column::Uid),
    ("PID", Column::Pid),
    ("PPID", Column::Ppid),
    ("C", Column::CpuInteger),
    ("PRI", Column::Priority),
    ("NI", Column::Nice),
    ("ADDR", Column::Address),
    ("SZ", Column::SizePages),
    ("WCHAN", Column::WaitChannel),
    ("TTY", Column::Terminal),
    ("TIME", Column::TimeLong),
    ("CMD", Column::CommandName),
];

/// What `ps -f` prints.
const FULL: &[(&str, Column)] = &[
    ("UID", Column::User),
    ("PID", Column::Pid),
    ("PPID", Column::Ppid),
    ("C", Column::CpuInteger),
    ("STIME", Column::StartShort),
    ("TTY", Column::Terminal),
    ("TIME", Column::TimeLong),
    ("CMD", Column::CommandLine),
];

/// What `ps ax` prints.
const BSD: &[(&str, Column)] = &[
    ("PID", Column::Pid),
    ("TTY", Column::Terminal),
    ("STAT", Column::State),
    ("TIME", Column::TimeShort),
    ("COMMAND", Column::CommandLine),
];

/// What `ps` prints.
const SHORT: &[(&str, Column)] = &[
    ("PID", Column::Pid),
    ("TTY", Column::Terminal),
    ("TIME", Column::TimeLong),
    ("CMD", Column::CommandName),
];

/// Which columns `ps` would print.
fn plan(ps_args: &str) -> Result<Columns, Error> {
    let words: Vec<&str> = ps_args.split_whitespace().collect();
    let mut chosen: Columns = Vec::new();
    let (mut full, mut extra, mut long, mut user, mut plain_bsd) =
        (words.is_empty(), false, false, false, false);
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let list = match word {
            "-o" | "o" | "--format" | "-eo" | "axo" | "-axo" | "-Ao" => match words.next() {
                Some(list) => Some(list),
                None => {
                    return Err(Error::invalid(format!(
                        "ps: {word} must be followed by a list of columns"
                    )));
                }
            },
            _ => word
                .strip_prefix("--format=")
                .or_else(|| word.strip_prefix("-o")),
        };
        if let Some(list) = list {
            chosen.extend(parse_list(list)?);
            continue;
        }
        match word.strip_prefix('-') {
            Some(letters)
                if !letters.is_empty() && letters.bytes().all(|c| b"eAfFlwax".contains(&c)) =>
            {
                full |= letters.contains('f');
                extra |= letters.contains('F');
                long |= letters.contains('l');
            }
            Some("aux") => user = true,
            None if word.bytes().all(|c| b"auxwfe".contains(&c)) => {
                user |= word.contains('u');
                plain_bsd |= !word.contains('u');
            }
            _ => {
                return Err(Error::invalid(format!(
                    "ps: {word:?} is not understood: caisson knows -ef, -eF, -el, aux, and -o with a list of columns"
                )));
            }
        }
    }
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let format = if user {
        USER
    } else if extra {
        EXTRA
    } else if long {
        LONG
    } else if full {
        FULL
    } else if plain_bsd {
        BSD
    } else {
        SHORT
    };
    Ok(titled(format))
}

/// `pid,user,args=WHAT`: as with `ps`, a title of one's own takes the rest of the list.
fn parse_list(list: &str) -> Result<Columns, Error> {
    let (list, title) = match list.split_once('=') {
        Some((list, title)) => (list, Some(title)),
        None => (list, None),
    };
    let mut columns = Vec::new();
    for name in list.split(',').map(str::trim).filter(|n| !n.is_empty()) {
        let found = COLUMNS
            .iter()
            .find(|(known, ..)| known.eq_ignore_ascii_case(name));
        let Some((_, heading, column)) = found else {
            return Err(Error::invalid(format!(
                "ps: the column {name:?} is not known"
            )));
        };
        columns.push((heading.to_string(), *column));
    }
    match columns.last_mut() {
        Some(last) => {
            if let Some(title) = title {
                last.0 = title.to_string();
            }
            Ok(columns)
        }
        None => Err(Error::invalid("ps: an empty list of columns")),
    }
}

/// What all rows need of the machine.
struct HostFacts {
    boot: SystemTime,
    memory_kib: u64,
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
    utc_offset_seconds: i64,
}

impl HostFacts {
    fn read() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot = stat
            .lines()
            .find_map(|l| l.strip_prefix("btime ")?.trim().parse().ok())
            .unwrap_or(0);
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory_kib = memory.lines().find_map(|l| {
            l.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse()
                .ok()
        });
        HostFacts {
            boot: SystemTime::UNIX_EPOCH + Duration::from_secs(boot),
            memory_kib: memory_kib.unwrap_or(1),
            users: names("/etc/passwd"),
            groups: names("/etc/group"),
            utc_offset_seconds: 0,
        }
    }
}

/// Ids and their names, of `/etc/passwd` and `/etc/group` alike.
fn names(path: &str) -> HashMap<u32, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let id = fields.nth(1)?.parse().ok()?;
        Some((id, name.to_string()))
    });
    // The first entry of an id counts; a guest's own root has no such files.
    let names = pairs.fold(HashMap::new(), |mut names, (id, name)| {
        names.entry(id).or_insert(name);
        names
    });
    if names.is_empty() {
        return HashMap::from([(0, "root".to_string())]);
    }
    names
}

/// What `/proc` says of one process.
struct Facts {
    pid: i32,
    uid: u32,
    gid: u32,
    name: String,
    command_line: String,
    wait_channel: String,
    /// `/proc/PID/stat` from field 3 (the state) on.
    stat: Vec<String>,
    locked: bool,
}

impl Facts {
    /// Of the command line, the first `command_bytes`.
    fn read(pid: Pid, command_bytes: usize) -> Option<Self> {
        let dir = format!("/proc/{pid}");
        let owner = fs::metadata(&dir).ok()?;
        let stat = fs::read_to_string(format!("{dir}/stat")).ok()?;
        let (name, fields) = split_stat(&stat)?;
        let mut raw = Vec::new();
        // one that cannot be read is shown as its name
        let _ = fs::File::open(format!("{dir}/cmdline"))
            .and_then(|file| file.take(command_bytes as u64).read_to_end(&mut raw));
        let words: Vec<_> = raw
            .split(|b| *b == 0)
            .map(|w| String::from_utf8_lossy(w).into_owned())
            .collect();
        let command_line = words.join(" ").trim_end().to_string();
        let status = fs::read_to_string(format!("{dir}/status")).unwrap_or_default();
        let locked = status
            .lines()
            .any(|l| l.strip_prefix("VmLck:").is_some_and(|v| v.trim() != "0 kB"));
        Some(Facts {
            pid: pid.as_raw(),
            uid: owner.uid(),
            gid: owner.gid(),
            command_line: if command_line.is_empty() {
                format!("[{name}]")
            } else {
                command_line
            },
            wait_channel: fs::read_to_string(format!("{dir}/wchan")).unwrap_or_default(),
            name,
            stat: fields,
            locked,
        })
    }

    /// A field of `/proc/PID/stat` by the number proc(5) gives it.
    fn field(&self, number: usize) -> i64 {
        self.stat
            .get(number - 3)
            .and_then(|f| f.parse().ok())
            .unwrap_or(0)
    }

    fn cpu_seconds(&self) -> u64 {
        (self.field(14) + self.field(15)).max(0) as u64 / TICKS_PER_SECOND
    }

    fn started(&self, host: &HostFacts) -> SystemTime {
        host.boot + Duration::from_millis(self.field(22).max(0) as u64 * 1000 / TICKS_PER_SECOND)
    }

    fn elapsed_seconds(&self, host: &HostFacts) -> u64 {
        self.started(host).elapsed().unwrap_or_default().as_secs()
    }

    /// Tenths of a percent of one processor over the process' life.
    fn cpu_permille(&self, host: &HostFacts) -> u64 {
        let ticks = (self.field(14) + self.field(15)).max(0) as u64;
        ticks * 1000 / TICKS_PER_SECOND / self.elapsed_seconds(host).max(1)
    }

    fn cell(&self, column: Column, host: &HostFacts) -> String {
        let resident_kib = self.field(24).max(0) as u64 * 4;
        let name_of = |names: &HashMap<u32, String>, id: u32| {
            names.get(&id).cloned().unwrap_or_else(|| id.to_string())
        };
        match column {
            Column::User => name_of(&host.users, self.uid),
            Column::Uid => self.uid.to_string(),
            Column::Group => name_of(&host.groups, self.gid),
            Column::Gid => self.gid.to_string(),
            Column::Pid => self.pid.to_string(),
            Column::Ppid => self.field(4).to_string(),
            Column::Pgid => self.field(5).to_string(),
            Column::Sid => self.field(6).to_string(),
            Column::Threads => self.field(20).to_string(),
            Column::State => self.state(),
            Column::StateOnly => self.stat.first().cloned().unwrap_or_default(),
            Column::CpuInteger => (self.cpu_permille(host) / 10).to_string(),
            Column::CpuPercent => tenths(self.cpu_permille(host)),
            Column::MemoryPercent => tenths(resident_kib * 1000 / host.memory_kib.max(1)),
            Column::VirtualKib => (self.field(23) / 1024).to_string(),
            Column::ResidentKib => resident_kib.to_string(),
            Column::SizePages => (self.field(23) / 4096).to_string(),
            Column::Priority => (60 + self.field(18)).to_string(),
            Column::Nice => self.field(19).to_string(),
            // ps shows "forked, not executed" and "used super-user privileges" (proc(5), PF_*).
            Column::Flags => ((self.field(9) >> 6) & 5).to_string(),
            Column::Address => "-".into(),
            Column::WaitChannel => match self.wait_channel.trim() {
                "" | "0" => "-".into(),
                name => name.chars().take(6).collect(),
            },
            Column::StartShort => start_short(
                self.started(host),
                SystemTime::now(),
                host.utc_offset_seconds,
            ),
            Column::StartLong => start_long(self.started(host), host.utc_offset_seconds),
            Column::Elapsed => elapsed(self.elapsed_seconds(host)),
            Column::ElapsedSeconds => self.elapsed_seconds(host).to_string(),
            Column::Terminal => terminal(self.field(7)),
            Column::TimeLong => time_long(self.cpu_seconds()),
            Column::TimeShort => {
                format!("{}:{:02}", self.cpu_seconds() / 60, self.cpu_seconds() % 60)
            }
            Column::Processor => self.field(39).to_string(),
            Column::CommandLine => self.command_line.clone(),
            Column::CommandName => self.name.clone(),
        }
    }

    /// `Ss+` and the like, as ps(1) explains them.
    fn state(&self) -> String {
        let mut state = self.stat.first().cloned().unwrap_or_default();
        match self.field(19) {
            n if n < 0 => state.push('<'),
            0 => {}
            _ => state.push('N'),
        }
        if self.locked {
            state.push('L');
        }
        if self.field(6) == i64::from(self.pid) {
            state.push('s');
        }
        if self.field(20) > 1 {
            state.push('l');
        }
        if self.field(8) == self.field(5) && self.field(7) != 0 {
            state.push('+');
        }
        state
    }
}

/// The name in parentheses, which may hold anything, and the fields behind it.
fn split_stat(stat: &str) -> Option<(String, Vec<String>)> {
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let fields = stat
        .get(close + 1..)?
        .split_whitespace()
        .map(str::to_string)
        .collect();
    Some((stat.get(open + 1..close)?.to_string(), fields))
}

fn tenths(permille: u64) -> String {
    format!("{}.{}", permille / 10, permille % 10)
}

fn time_long(seconds: u64) -> String {
    let (days, hours, minutes, seconds) = (
        seconds / 86400,
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    );
    let days = if days > 0 {
        format!("{days}-")
    } else {
        String::new()
    };
    format!("{days}{hours:02}:{minutes:02}:{seconds:02}")
}

fn elapsed(seconds: u64) -> String {
    let (days, hours, minutes, rest) = (
        seconds / 86400,
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    );
    match (days, hours) {
        (0, 0) => format!("{minutes:02}:{rest:02}"),
        (0, _) => format!("{hours:02}:{minutes:02}:{rest:02}"),
        _ => format!("{days}-{hours:02}:{minutes:02}:{rest:02}"),
    }
}

/// The device number of `/proc/PID/stat` as a name beneath `/dev` (devices.txt).
fn terminal(device: i64) -> String {
    let device = device as u64;
    let (major, minor) = (
        (device >> 8) & 0xfff,
        (device & 0xff) | ((device >> 12) & 0xfff00),
    );
    match major {
        0 => "?".into(),
        4 if minor < 64 => format!("tty{minor}"),
        4 => format!("ttyS{}", minor - 64),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        _ => format!("{major}:{minor}"),
    }
}

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

/// A moment as a calendar shows it.
struct Moment {
    days: i64,
    year: i64,
    month: usize,
    day: i64,
    second_of_day: i64,
}

fn moment(at: SystemTime, offset_seconds: i64) -> Moment {
    let seconds = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs() as i64
        + offset_seconds;
    let (days, second_of_day) = (seconds.div_euclid(86400), seconds.rem_euclid(86400));
    // Years begin in March here, so that the leap day is their last (proleptic Gregorian calendar, 400-year eras).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let month = (shifted_month + 2) % 12;
    Moment {
        days,
        year: era * 400 + year_of_era + i64::from(month < 2),
        month: month as usize,
        day: day_of_year - (153 * shifted_month + 2) / 5 + 1,
        second_of_day,
    }
}

/// The time today, the month and day this year, otherwise the year.
fn start_short(at: SystemTime, now: SystemTime, offset_seconds: i64) -> String {
    let (at, now) = (moment(at, offset_seconds), moment(now, offset_seconds));
    if at.days == now.days {
        format!(
            "{:02}:{:02}",
            at.second_of_day / 3600,
            at.second_of_day / 60 % 60
        )
    } else if at.year == now.year {
        format!("{}{:02}", MONTHS[at.month], at.day)
    } else {
        at.year.to_string()
    }
}

fn start_long(at: SystemTime, offset_seconds: i64) -> String {
    let at = moment(at, offset_seconds);
    let s = at.second_of_day;
    let (weekday, month) = (WEEKDAYS[at.days.rem_euclid(7) as usize], MONTHS[at.month]);
    format!(
        "{weekday} {month} {:>2} {:02}:{:02}:{:02} {}",
        at.day,
        s / 3600,
        s / 60 % 60,
        s % 60,
        at.year
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(ps_args: &str) -> Vec<String> {
        plan(ps_args)
            .expect(ps_args)
            .into_iter()
            .map(|(title, _)| title)
            .collect()
    }

    #[test]
    fn the_usual_forms_have_the_columns_of_ps() {
        let full = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];
        assert_eq!(titles(""), full);
        assert_eq!(titles("-ef"), full);
        assert_eq!(
            titles("aux"),
            [
                "USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT", "START", "TIME",
                "COMMAND"
            ]
        );
        assert_eq!(titles("-e"), ["PID", "TTY", "TIME", "CMD"]);
        assert_eq!(titles("-o pid,comm"), ["PID", "COMMAND"]);
        assert_eq!(titles("-eo pid,args"), ["PID", "COMMAND"]);
        assert_eq!(titles("-o pid -o args=WHAT"), ["PID", "WHAT"]);
        for bad in ["-Z", "-o", "-o nonsense", "--sort=pid", "; id"] {
            assert!(plan(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_process_called_anything_is_read() {
        let (name, fields) = split_stat("7 (a) R (b) S 1 7 7").expect("well-formed");
        assert_eq!(name, "a) R (b");
        assert_eq!(fields, ["S", "1", "7", "7"]);
    }

    #[test]
    fn calendar() {
        let at = |s: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        assert_eq!(start_long(at(1_709_210_096), 0), "Thu Feb 29 12:34:56 2024");
        assert_eq!(start_long(at(951_782_400), 0), "Tue Feb 29 00:00:00 2000");
        assert_eq!(
            start_short(at(1_709_210_096), at(1_709_210_196), 0),
            "12:34"
        );
        assert_eq!(
            start_short(at(1_709_210_096), at(1_710_000_000), 0),
            "Feb29"
        );
        assert_eq!(start_short(at(1_709_210_096), at(1_810_000_000), 0), "2024");
    }

    #[test]
    fn durations_and_terminals() {
        assert_eq!(time_long(90_061), "1-01:01:01");
        assert_eq!(elapsed(61), "01:01");
        assert_eq!(elapsed(3_661), "01:01:01");
        assert_eq!(terminal(0), "?");
        assert_eq!(terminal(0x8803), "pts/3");
    }

    #[test]
    fn this_process_is_shown_as_itself() {
        let host = HostFacts::read();
        let facts = Facts::read(nix::unistd::getpid(), 4096).expect("it lives");
        assert_eq!(
            facts.cell(Column::Ppid, &host),
            nix::unistd::getppid().to_string()
        );
        assert!(facts.cell(Column::CommandLine, &host).contains("caisson"));
        assert!(
            facts.elapsed_seconds(&host) < 86_400,
            "the boot time counts"
        );
        let facts = Facts::read(nix::unistd::getpid(), 5).expect("it lives");
        assert_eq!(facts.cell(Column::CommandLine, &host).len(), 5);
    }
}
