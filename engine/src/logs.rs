//! Reading what a container wrote: Docker's json-file lines, rotated files included, followed while they grow.
//!
//! ```text
//! ID-json.log     the current file      {"log":"text\n","stream":"stdout","time":"RFC 3339 with nanoseconds"}
//! ID-json.log.1   the one before it
//! ID-json.log.N   the oldest
//! ```
//!
//! A followed file is noticed to be rotated when its path names another inode; what was left unread in the old one is read
//! first. Must not know: who writes the files.

mod reader;
mod tail;

use std::collections::BTreeMap;
use std::sync::Arc;

use caisson_api as api;
use caisson_runtime::Output;
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};

use crate::container::Dir;
use crate::error::{Error, Result};
use crate::options::{Logs, LogsOptions, OutputStream};
use crate::records::View;
use crate::size::parse_bytes;
use crate::{Engine, Inner};
use reader::{Line, Reader};

/// A log driver with its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Driver {
    /// Files of JSON lines, also what `local` means here.
    Files {
        max_size_bytes: Option<u64>,
        max_files: u32,
    },
    /// Nothing is kept.
    None,
}

impl Driver {
    /// Reads a log configuration; unknown drivers and options are refused.
    pub(crate) fn read(config: &api::LogConfig) -> Result<Driver> {
        let driver = config.driver.as_str();
        let mut size = None;
        let mut files = None;
        for (key, value) in &config.config {
            let bad = || {
                Error::invalid(format!(
                    "invalid value for log opt '{key}' of the {driver} log driver: {value}"
                ))
            };
            match key.as_str() {
                // no limit
                "max-size" if value == "-1" => size = Some(0),
                "max-size" => size = Some(parse_bytes(value).ok_or_else(bad)?),
                "max-file" => {
                    files = Some(
                        value
                            .parse::<u32>()
                            .ok()
                            .filter(|n| *n >= 1)
                            .ok_or_else(|| Error::invalid("max-file cannot be less than 1"))?,
                    );
                }
                "compress" | "mode" | "max-buffer-size" | "labels" | "labels-regex" | "env"
                | "env-regex" | "tag" => {}
                _ => {
                    return Err(Error::invalid(format!(
                        "unknown log opt '{key}' for {driver} log driver"
                    )));
                }
            }
        }
        match driver {
            "none" => Ok(Driver::None),
            "" | "json-file" => {
                let size = size.filter(|s| *s > 0);
                if size.is_none() && files.is_some_and(|f| f > 1) {
                    return Err(Error::invalid(
                        "max-file cannot be set without max-size: the log would never be rotated",
                    ));
                }
                Ok(Driver::Files {
                    max_size_bytes: size,
                    max_files: files.unwrap_or(1),
                })
            }
            "local" => Ok(Driver::Files {
                max_size_bytes: Some(size.unwrap_or(20 << 20)),
                max_files: files.unwrap_or(5),
            }),
            other => Err(Error::invalid(format!(
                "logger: no log driver named '{other}' is registered: use json-file, local or none"
            ))),
        }
    }

    /// Size and number of files; `None` when nothing is kept.
    pub(crate) fn rotation(&self) -> Option<(Option<u64>, u32)> {
        match self {
            Driver::Files {
                max_size_bytes,
                max_files,
            } => Some((*max_size_bytes, *max_files)),
            Driver::None => None,
        }
    }
}

impl Engine {
    /// `GET /containers/ID/logs`.
    pub async fn logs(&self, id: &str, options: LogsOptions) -> Result<Logs> {
        let container = self.inner.container(id)?;
        if !(options.stdout || options.stderr) {
            return Err(Error::invalid(
                "Bad parameters: you must choose at least one stream",
            ));
        }
        let view = container.view();
        let tty = view.definition.config.tty;
        Ok(Logs {
            tty,
            output: self.logs_of(&view, container.watch(), options)?,
        })
    }

    pub(crate) fn logs_of(
        &self,
        view: &View,
        watch: watch::Receiver<Arc<View>>,
        options: LogsOptions,
    ) -> Result<OutputStream> {
        let config = &view.definition.host.log_config;
        if Driver::read(config)? == Driver::None {
            return Err(Error::not_implemented(
                "configured logging driver does not support reading",
            ));
        }
        let dir = Dir::new(&self.inner.config.data_root, &view.id);
        let details = options.details.then(|| details(view));
        let (lines, received) = mpsc::channel(64);
        let path = dir.log();
        // A thread of its own only while there is something to read: the follower sleeps as a task.
        tokio::spawn(async move {
            let mut follow = Reader::new(path, options, details, watch);
            follow.run(lines).await;
        });
        let stream = futures_util::stream::unfold(received, |mut received| async move {
            received.recv().await.map(|item| (item, received))
        });
        Ok(stream.boxed())
    }
}

/// What `--details` shows: labels and variables named by the log options, `k=v,k=v`.
fn details(view: &View) -> String {
    let config = &view.definition.config;
    let options = &view.definition.host.log_config.config;
    let mut all = BTreeMap::new();
    if let Some(wanted) = options.get("labels") {
        for key in wanted.split(',') {
            if let Some(value) = config
                .labels
                .iter()
                .flatten()
                .find(|(k, _)| *k == key)
                .map(|(_, v)| v)
            {
                all.insert(key.to_string(), value.clone());
            }
        }
    }
    if let Some(wanted) = options.get("env") {
        for key in wanted.split(',') {
            let found = config
                .env
                .iter()
                .flatten()
                .filter_map(|e| e.split_once('='))
                .find(|(k, _)| *k == key);
            if let Some((_, value)) = found {
                all.insert(key.to_string(), value.to_string());
            }
        }
    }
    all.into_iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect::<Vec<_>>()
        .join(",")
}

/// A line as the client gets it.
fn render(line: Line, options: &LogsOptions, details: Option<&str>) -> Option<Output> {
    let wanted = if line.stderr {
        options.stderr
    } else {
        options.stdout
    };
    if !wanted {
        return None;
    }
    let mut text = Vec::with_capacity(line.text.len() + 32);
    if options.timestamps {
        text.extend_from_slice(
            line.time
                .to_rfc3339_opts(chrono::SecondsFormat::Nanos, true)
                .as_bytes(),
        );
        text.push(b' ');
    }
    if let Some(details) = details {
        text.extend_from_slice(details.as_bytes());
        text.push(b' ');
    }
    text.extend_from_slice(&line.text);
    let text = bytes::Bytes::from(text);
    Some(if line.stderr {
        Output::Stderr(text)
    } else {
        Output::Stdout(text)
    })
}

impl Inner {
    /// The log configuration of a container that asked for what is in `given`.
    pub(crate) fn log_config(&self, given: &api::LogConfig) -> api::LogConfig {
        let mut config = given.clone();
        if config.driver.is_empty() {
            config.driver.clone_from(&self.config.log_driver);
            for (key, value) in &self.config.log_opts {
                config
                    .config
                    .entry(key.clone())
                    .or_insert_with(|| value.clone());
            }
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(name: &str, options: &[(&str, &str)]) -> Result<Driver> {
        let config = options
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        Driver::read(&api::LogConfig {
            driver: name.into(),
            config,
        })
    }

    #[test]
    fn drivers_and_options() {
        assert_eq!(
            driver("", &[]).unwrap(),
            Driver::Files {
                max_size_bytes: None,
                max_files: 1
            }
        );
        assert_eq!(
            driver("json-file", &[("max-size", "10m"), ("max-file", "3")]).unwrap(),
            Driver::Files {
                max_size_bytes: Some(10 << 20),
                max_files: 3
            }
        );
        assert_eq!(
            driver("local", &[]).unwrap(),
            Driver::Files {
                max_size_bytes: Some(20 << 20),
                max_files: 5
            }
        );
        assert_eq!(driver("none", &[]).unwrap().rotation(), None);
        assert!(
            driver("syslog", &[])
                .unwrap_err()
                .message
                .contains("no log driver named 'syslog'")
        );
        assert!(
            driver("json-file", &[("colour", "red")])
                .unwrap_err()
                .message
                .contains("unknown log opt 'colour'")
        );
        for bad in ["ten", "10x", "", "m"] {
            assert!(driver("json-file", &[("max-size", bad)]).is_err(), "{bad}");
        }
        assert!(driver("json-file", &[("max-file", "3")]).is_err());
    }
}
