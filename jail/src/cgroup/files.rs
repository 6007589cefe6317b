//! Reading and writing single control files. Every error names the file, and for writes the value.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::error::{Error, hint};

/// One `write(2)` of the whole value: control files take each write as one command.
pub fn write_raw(path: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    loop {
        match file.write(value.as_bytes()) {
            Ok(n) if n == value.len() => return Ok(()),
            Ok(n) => {
                return Err(io::Error::other(format!(
                    "only {n} of {} bytes taken",
                    value.len()
                )));
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Like [`write_raw`], with an error for the user.
pub fn write(path: &Path, value: &str) -> Result<(), Error> {
    write_raw(path, value).map_err(|source| Error::Write {
        hint: hint(&source),
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    })
}

/// The whole text; not even a missing file is fine.
pub fn read(path: &Path) -> Result<String, Error> {
    read_raw(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

/// The whole text, `None` when the file or its cgroup does not exist.
pub fn read_if_there(path: &Path) -> Result<Option<String>, Error> {
    match read_raw(path) {
        Ok(text) => Ok(Some(text)),
        // ENODEV: the cgroup was removed while its file was open.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(None),
        Err(source) => Err(Error::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn read_raw(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    File::read_to_string(&mut file, &mut text)?;
    Ok(text)
}

/// The number in a file that holds one; `max` reads as `None`, and so does a missing file.
pub fn read_number(path: &Path) -> Result<Option<u64>, Error> {
    let Some(text) = read_if_there(path)? else {
        return Ok(None);
    };
    match text.trim() {
        "max" => Ok(None),
        text => text.parse().map(Some).map_err(|_| Error::Parse {
            path: path.to_owned(),
            content: text.to_owned(),
        }),
    }
}

/// Lines of the form `KEY NUMBER`; others are left out. Empty when the file is missing.
pub fn read_pairs(path: &Path) -> Result<Vec<(String, u64)>, Error> {
    let text = read_if_there(path)?.unwrap_or_default();
    Ok(text
        .lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        })
        .collect())
}

/// The value of `key` in a file of [`read_pairs`]' form.
pub fn read_key(path: &Path, key: &str) -> Result<Option<u64>, Error> {
    Ok(read_pairs(path)?
        .into_iter()
        .find(|(k, _)| k == key)
        .map(|(_, v)| v))
}

/// The directories directly below a cgroup; none when it is gone.
pub fn children(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let gone = |e: &io::Error| matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV));
    let failed = |source| Error::Read {
        path: dir.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if gone(&e) => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) if entry.file_type().is_ok_and(|t| t.is_dir()) => found.push(entry.path()),
            Ok(_) => {}
            Err(e) if gone(&e) => break,
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(found)
}
