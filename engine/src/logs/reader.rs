//! One reader of one container's log: the past once, then what comes.
//!
//! Waiting is polling with a short sleep that grows while nothing comes; the end of the container is a change of its view.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use caisson_runtime::Output;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};

use super::{render, tail};
use crate::options::LogsOptions;
use crate::records::View;

/// A line of the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub text: Vec<u8>,
    pub stderr: bool,
    pub time: DateTime<Utc>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    log: std::borrow::Cow<'a, str>,
    #[serde(default, borrow)]
    stream: std::borrow::Cow<'a, str>,
    time: DateTime<Utc>,
}

/// A line of the file; `None` when it is damaged (a crash of the host in the middle of a write).
pub(crate) fn parse(line: &[u8]) -> Option<Line> {
    let entry: Entry<'_> = serde_json::from_slice(line).ok()?;
    Some(Line {
        text: entry.log.into_owned().into_bytes(),
        stderr: entry.stream == "stderr",
        time: entry.time,
    })
}

type Items = mpsc::Sender<std::io::Result<Output>>;

/// Why reading ends early.
enum Stop {
    /// The client has gone, or the time is up.
    Done,
    Failed(std::io::Error),
}

impl From<std::io::Error> for Stop {
    fn from(e: std::io::Error) -> Self {
        Stop::Failed(e)
    }
}

pub(crate) struct Reader {
    path: PathBuf,
    options: LogsOptions,
    details: Option<String>,
    views: watch::Receiver<Arc<View>>,
}

/// A file being read, and the beginning of a line that is not complete yet.
struct Open {
    file: File,
    inode: u64,
    offset: u64,
    partial: Vec<u8>,
}

impl Open {
    fn new(path: &Path) -> std::io::Result<Option<Open>> {
        match File::open(path) {
            Ok(file) => {
                let inode = file.metadata()?.ino();
                Ok(Some(Open {
                    file,
                    inode,
                    offset: 0,
                    partial: Vec::new(),
                }))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The next piece of the file, as complete lines; empty at its end.
    fn lines(&mut self) -> std::io::Result<Vec<Vec<u8>>> {
        let mut block = vec![0u8; 64 << 10];
        let mut lines = Vec::new();
        loop {
            let n = self.file.read_at(&mut block, self.offset)?;
            if n == 0 {
                return Ok(lines);
            }
            self.offset += n as u64;
            let mut rest = &block[..n];
            while let Some(at) = rest.iter().position(|b| *b == b'\n') {
                self.partial.extend_from_slice(&rest[..=at]);
                lines.push(std::mem::take(&mut self.partial));
                rest = &rest[at + 1..];
            }
            self.partial.extend_from_slice(rest);
            if !lines.is_empty() {
                return Ok(lines);
            }
        }
    }
}

impl Reader {
    pub(crate) fn new(
        path: PathBuf,
        options: LogsOptions,
        details: Option<String>,
        views: watch::Receiver<Arc<View>>,
    ) -> Reader {
        Reader {
            path,
            options,
            details,
            views,
        }
    }

    /// Sends everything, then (with `follow`) what comes, until the container or the client is gone.
    pub(crate) async fn run(&mut self, items: Items) {
        if let Err(Stop::Failed(e)) = self.read(&items).await {
            let _ = items.send(Err(e)).await;
        }
    }

    async fn read(&mut self, items: &Items) -> Result<(), Stop> {
        let mut current = None;
        for file in self.past()? {
            current = Some(self.drain(file, items).await?);
        }
        if !self.options.follow {
            return Ok(());
        }
        self.follow(current, items).await
    }

    /// The files to read, oldest first, each at the offset where to begin.
    fn past(&self) -> std::io::Result<Vec<Open>> {
        let mut files = Vec::new();
        if let Some(file) = Open::new(&self.path)? {
            files.push(file);
        }
        for n in 1u32.. {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            match Open::new(Path::new(&name))? {
                // Renamed between the two looks: it is the one we hold already.
                Some(file) if files.iter().any(|f| f.inode == file.inode) => {}
                Some(file) => files.push(file),
                None => break,
            }
        }
        if let Some(mut wanted) = self.options.tail {
            let accepts = |line: &[u8]| {
                parse(line).is_some_and(|l| {
                    if l.stderr {
                        self.options.stderr
                    } else {
                        self.options.stdout
                    }
                })
            };
            let mut kept = Vec::new();
            for mut file in files {
                let end = file.file.metadata()?.len();
                let (offset, found) = tail::start_of(&file.file, end, wanted, accepts)?;
                file.offset = offset;
                wanted -= found;
                kept.push(file);
                if wanted == 0 {
                    break;
                }
            }
            files = kept;
        }
        files.reverse();
        Ok(files)
    }

    /// Sends what is in a file up to its end.
    async fn drain(&self, mut file: Open, items: &Items) -> Result<Open, Stop> {
        loop {
            let lines = file.lines()?;
            if lines.is_empty() {
                return Ok(file);
            }
            for line in lines {
                self.send(&line, items).await?;
            }
        }
    }

    async fn send(&self, line: &[u8], items: &Items) -> Result<(), Stop> {
        let Some(line) = parse(line) else {
            return Ok(());
        };
        if self.options.since.is_some_and(|since| line.time < since) {
            return Ok(());
        }
        if self.options.until.is_some_and(|until| line.time > until) {
            return Err(Stop::Done);
        }
        match render(line, &self.options, self.details.as_deref()) {
            Some(output) => items.send(Ok(output)).await.map_err(|_| Stop::Done),
            None => Ok(()),
        }
    }

    async fn follow(&mut self, mut current: Option<Open>, items: &Items) -> Result<(), Stop> {
        const SHORTEST: Duration = Duration::from_millis(5);
        const LONGEST: Duration = Duration::from_millis(200);
        let mut pause = SHORTEST;
        loop {
            // Whether it runs is looked at before the file is: what it wrote until then is in the file.
            let up = {
                let view = self.views.borrow_and_update();
                !view.removed && view.state.status.is_up()
            };
            let mut moved = false;
            if let Some(file) = current.take() {
                let before = file.offset;
                let file = self.drain(file, items).await?;
                moved |= file.offset != before;
                current = Some(file);
            }
            let mut newer = self.newer(current.as_ref())?;
            if let Some(newest) = newer.pop() {
                // The old file may have got its last lines between our look and its renaming.
                for file in current.take().into_iter().chain(newer) {
                    self.drain(file, items).await?;
                }
                current = Some(newest);
                continue;
            }
            if !up {
                return Ok(());
            }
            pause = if moved {
                SHORTEST
            } else {
                (pause * 2).min(LONGEST)
            };
            let until = self
                .options
                .until
                .and_then(|u| (u - Utc::now()).to_std().ok());
            if self.options.until.is_some() && until.is_none() {
                return Err(Stop::Done);
            }
            tokio::select! {
                () = tokio::time::sleep(until.map_or(pause, |u| u.min(pause))) => {}
                changed = self.views.changed() => {
                    if changed.is_err() {
                        // Removed: read the rest of the open file, if any, and end.
                        if let Some(file) = current.take() {
                            self.drain(file, items).await?;
                        }
                        return Ok(());
                    }
                }
                () = items.closed() => return Err(Stop::Done),
            }
        }
    }

    /// Files that were begun after the one which is open, oldest first; none when that is still the current one.
    fn newer(&self, current: Option<&Open>) -> std::io::Result<Vec<Open>> {
        let mut newer = Vec::new();
        let mut path = self.path.clone();
        for n in 1u32.. {
            match std::fs::metadata(&path) {
                Ok(meta) if current.is_some_and(|c| c.inode == meta.ino()) => break,
                Ok(_) => newer.extend(Open::new(&path)?),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => break,
                Err(e) => return Err(e),
            }
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            path = name.into();
        }
        newer.reverse();
        Ok(newer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn line(n: u32, stream: &str) -> String {
        format!(
            "{{\"log\":\"line {n}\\n\",\"stream\":\"{stream}\",\"time\":\"2026-01-01T00:00:{n:02}Z\"}}\n"
        )
    }

    async fn read(path: &Path, options: LogsOptions) -> Vec<String> {
        let (tx, mut rx) = mpsc::channel(1000);
        let (_view, watch) = watch::channel(Arc::new(crate::test_support::view("exited")));
        Reader::new(path.into(), options, None, watch).run(tx).await;
        let mut all = Vec::new();
        while let Some(item) = rx.recv().await {
            let (Output::Stdout(b) | Output::Stderr(b)) = item.unwrap();
            all.push(
                String::from_utf8(b.to_vec())
                    .unwrap()
                    .trim_end()
                    .to_string(),
            );
        }
        all
    }

    fn both() -> LogsOptions {
        LogsOptions {
            stdout: true,
            stderr: true,
            ..Default::default()
        }
    }

    fn rotated(dir: &Path) -> PathBuf {
        let path = dir.join("x-json.log");
        std::fs::write(
            dir.join("x-json.log.2"),
            line(1, "stdout") + &line(2, "stderr"),
        )
        .unwrap();
        std::fs::write(
            dir.join("x-json.log.1"),
            line(3, "stdout") + &line(4, "stderr"),
        )
        .unwrap();
        std::fs::write(
            &path,
            line(5, "stdout") + "{damaged\n" + &line(6, "stderr") + "{\"log\":\"incompl",
        )
        .unwrap();
        path
    }

    #[tokio::test]
    async fn rotated_files_are_one_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = rotated(dir.path());
        let all = read(&path, both()).await;
        assert_eq!(
            all,
            (1..=6).map(|n| format!("line {n}")).collect::<Vec<_>>()
        );
        assert_eq!(
            read(
                &path,
                LogsOptions {
                    tail: Some(3),
                    ..both()
                }
            )
            .await,
            ["line 4", "line 5", "line 6"]
        );
        let out = LogsOptions {
            stdout: true,
            tail: Some(2),
            ..Default::default()
        };
        assert_eq!(
            read(&path, out).await,
            ["line 3", "line 5"],
            "tail counts the chosen stream"
        );
        assert!(
            read(
                &path,
                LogsOptions {
                    tail: Some(0),
                    ..both()
                }
            )
            .await
            .is_empty()
        );
    }

    #[tokio::test]
    async fn times() {
        let dir = tempfile::tempdir().unwrap();
        let path = rotated(dir.path());
        let at = |s: &str| Some(s.parse::<DateTime<Utc>>().unwrap());
        let options = LogsOptions {
            since: at("2026-01-01T00:00:02Z"),
            until: at("2026-01-01T00:00:04Z"),
            ..both()
        };
        assert_eq!(read(&path, options).await, ["line 2", "line 3", "line 4"]);
        let stamped = read(
            &path,
            LogsOptions {
                timestamps: true,
                tail: Some(1),
                ..both()
            },
        )
        .await;
        assert_eq!(stamped, ["2026-01-01T00:00:06.000000000Z line 6"]);
        assert!(
            read(&dir.path().join("none"), both()).await.is_empty(),
            "no log yet is an empty log"
        );
    }

    #[tokio::test]
    async fn following_survives_rotation_and_ends_with_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x-json.log");
        let mut file = File::create(&path).unwrap();
        file.write_all(line(1, "stdout").as_bytes()).unwrap();
        let (tx, mut rx) = mpsc::channel(1000);
        let (view, watch) = watch::channel(Arc::new(crate::test_support::view("running")));
        let mut reader = Reader::new(
            path.clone(),
            LogsOptions {
                follow: true,
                ..both()
            },
            None,
            watch,
        );
        let task = tokio::spawn(async move { reader.run(tx).await });
        rx.recv().await.unwrap().unwrap();
        file.write_all(line(2, "stdout").as_bytes()).unwrap();
        std::fs::rename(&path, dir.path().join("x-json.log.1")).unwrap();
        std::fs::write(&path, line(3, "stdout")).unwrap();
        for n in [2, 3] {
            let Output::Stdout(b) = rx.recv().await.unwrap().unwrap() else {
                panic!("stdout")
            };
            assert_eq!(b, format!("line {n}\n"));
        }
        view.send_replace(Arc::new(crate::test_support::view("exited")));
        assert!(rx.recv().await.is_none());
        task.await.unwrap();
    }
}
