//! A tar stream into a tree.
//!
//! For every entry: clean the name, refuse what climbs out, open (or create) the parent beneath the root, remove what is
//! in the way unless both are directories, make the entry with `O_EXCL` in the opened parent, then owner, mode, attributes
//! and times, in this order: changing the owner clears setuid and capabilities. Directories get their times at the end.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
    chmodat, chownat, fchmod, fchown, futimens, linkat, makedev, mkdirat, mknodat, openat, statat,
    symlinkat, utimensat,
};
use rustix::io::Errno;

use crate::beneath::{clean, create_dir_all, open_raw};
use crate::error::{Context, Error, Result};
use crate::remove::remove_all;
use crate::stream::{Entry, EntryKind, Stream};
use crate::whiteout::{UnpackWhiteouts, WHITEOUT_PREFIX, whiteout_at};
use crate::xattr::{Target, travels};

mod whiteouts;

const BUFFER_BYTES: usize = 256 * 1024;

/// Who owns what is unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Whoever the archive says.
    Archive,
    /// Always these.
    Fixed {
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// How an archive is unpacked.
#[derive(Clone, Debug)]
pub struct UnpackOptions {
    /// Who owns the result.
    pub ownership: Ownership,
    /// What becomes of `.wh.` entries.
    pub whiteouts: UnpackWhiteouts,
    /// Refuse to replace a directory with something else, or the reverse (`docker cp`'s noOverwriteDirNonDir).
    pub no_overwrite_dir_non_dir: bool,
    /// Give the extraction directory itself the owner, mode and times of a `./` entry.
    pub root_attributes: bool,
    /// Most bytes of file contents.
    pub max_bytes: u64,
    /// Most entries.
    pub max_entries: u64,
}

impl UnpackOptions {
    /// For one layer going into an empty directory to be used as an overlay's lower directory.
    pub fn layer() -> Self {
        UnpackOptions {
            ownership: Ownership::Archive,
            whiteouts: UnpackWhiteouts::Overlay,
            no_overwrite_dir_non_dir: false,
            root_attributes: true,
            max_bytes: u64::MAX,
            max_entries: u64::MAX,
        }
    }

    /// For `docker cp` into a container.
    pub fn copy() -> Self {
        UnpackOptions {
            whiteouts: UnpackWhiteouts::Literal,
            root_attributes: false,
            ..Self::layer()
        }
    }
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries read.
    pub entries: u64,
    /// Bytes of file contents, holes included.
    pub bytes: u64,
    /// Extended attributes the file system could not hold.
    pub skipped_xattrs: u64,
}

/// Unpacks the archive `input` into the directory `dest` beneath `root`, which must exist. Reads up to the archive's end
/// mark; what follows is left to the caller.
///
/// # Errors
/// See [`Error`]. What was unpacked before an error stays: the caller unpacks into a directory it can throw away, or
/// accepts a partial copy as `docker cp` does.
pub fn unpack(
    root: BorrowedFd<'_>,
    dest: &Path,
    input: &mut impl Read,
    options: &UnpackOptions,
) -> Result<Unpacked> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    open_raw(root, dest, flags, ResolveFlags::IN_ROOT).context("open", dest)?;
    let mut unpacker = Unpacker {
        root,
        dest: clean_dest(dest)?,
        options,
        parent: None,
        made: BTreeSet::new(),
        times: Vec::new(),
        buffer: vec![0; BUFFER_BYTES],
        unpacked: Unpacked::default(),
    };
    let mut stream = Stream::new(input);
    while let Some(entry) = stream.next_entry()? {
        unpacker.count(&entry)?;
        unpacker.entry(&entry, &mut stream)?;
    }
    unpacker.directory_times()?;
    Ok(unpacker.unpacked)
}

/// The destination is a path within the root, so `..` at its start is the root, as in a chroot.
fn clean_dest(dest: &Path) -> Result<PathBuf> {
    if dest.as_os_str().as_bytes().contains(&0) {
        return Err(Error::Invalid("the path contains a NUL byte".into()));
    }
    // Left as it is: `..` after a symbolic link must be resolved by the kernel, not by text.
    Ok(dest.strip_prefix("/").unwrap_or(dest).to_path_buf())
}

struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    dest: PathBuf,
    options: &'a UnpackOptions,
    /// The last parent directory, for the entries beside it.
    parent: Option<(PathBuf, OwnedFd)>,
    /// With [`UnpackWhiteouts::Remove`]: what this archive made, which its own opaque marks must not delete.
    made: BTreeSet<PathBuf>,
    times: Vec<(PathBuf, Timestamps)>,
    buffer: Vec<u8>,
    unpacked: Unpacked,
}

impl Unpacker<'_> {
    fn count(&mut self, entry: &Entry) -> Result<()> {
        self.unpacked.entries += 1;
        if self.unpacked.entries > self.options.max_entries {
            return Err(Error::LimitExceeded {
                unit: "entries",
                limit: self.options.max_entries,
            });
        }
        self.unpacked.bytes = self.unpacked.bytes.saturating_add(entry.size_bytes);
        if self.unpacked.bytes > self.options.max_bytes {
            return Err(Error::LimitExceeded {
                unit: "bytes",
                limit: self.options.max_bytes,
            });
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry, data: &mut Stream<&mut impl Read>) -> Result<()> {
        let path = clean(&entry.name)?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            return self.extraction_directory(entry);
        };
        let dir = path.parent().map(Path::to_path_buf).unwrap_or_default();
        self.open_parent(&dir)?;
        if self.options.whiteouts != UnpackWhiteouts::Literal
            && let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT_PREFIX.as_bytes())
        {
            return self.whiteout(&dir, &name, OsStr::from_bytes(hidden), entry);
        }
        let (_, parent) = self.parent.take().expect("the parent was opened above");
        let result = self.make(&path, &name, &parent, entry, data);
        // A directory that was removed must not be written into through the descriptor kept of it.
        if let Ok(Made {
            removed_directory: false,
        }) = result
        {
            self.parent = Some((dir, parent));
        }
        result?;
        if self.options.whiteouts == UnpackWhiteouts::Remove {
            self.made.insert(path);
        }
        Ok(())
    }

    fn extraction_directory(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != EntryKind::Directory {
            return Err(Error::Invalid("the root is not a directory".into()));
        }
        if !self.options.root_attributes {
            return Ok(());
        }
        let dir = self.open_dir(Path::new(""))?;
        self.directory_attributes(&dir, Path::new(""), entry)
    }

    fn open_parent(&mut self, dir: &Path) -> Result<()> {
        if self.parent.as_ref().is_none_or(|(open, _)| open != dir) {
            let fd = create_dir_all(self.root, &self.dest.join(dir))?;
            self.parent = Some((dir.to_path_buf(), fd));
        }
        Ok(())
    }

    fn open_dir(&self, path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        open_raw(
            self.root,
            &self.dest.join(path),
            flags,
            ResolveFlags::IN_ROOT,
        )
        .context("open", path)
    }

    fn make(
        &mut self,
        path: &Path,
        name: &OsStr,
        parent: &OwnedFd,
        entry: &Entry,
        data: &mut Stream<&mut impl Read>,
    ) -> Result<Made> {
        let cleared = self.clear(path, name, parent, entry.kind)?;
        let action = "create";
        match entry.kind {
            EntryKind::Directory => {
                if cleared != Cleared::DirectoryStays {
                    mkdirat(parent, name, Mode::from_raw_mode(0o700)).context(action, path)?;
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let dir = openat(parent, name, flags, Mode::empty()).context("open", path)?;
                if cleared == Cleared::Whiteout {
                    // The lower directory was deleted, this one is new: nothing of the lower one may shine through.
                    self.set_opaque(&dir, path)?;
                }
                self.directory_attributes(&dir, path, entry)?;
            }
            EntryKind::File => self.file(path, name, parent, entry, data)?,
            EntryKind::HardLink => self.hard_link(path, name, parent, entry)?,
            EntryKind::Symlink => {
                symlinkat(OsStr::from_bytes(&entry.link), parent, name).context(action, path)?;
                self.name_attributes(path, name, parent, entry)?;
            }
            EntryKind::CharDevice | EntryKind::BlockDevice | EntryKind::Fifo => {
                let file_type = match entry.kind {
                    EntryKind::CharDevice => FileType::CharacterDevice,
                    EntryKind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = match entry.kind {
                    EntryKind::Fifo => 0,
                    _ => makedev(entry.device_major, entry.device_minor),
                };
                mknodat(parent, name, file_type, Mode::from_raw_mode(0o600), device)
                    .context(action, path)?;
                self.name_attributes(path, name, parent, entry)?;
            }
        }
        Ok(Made {
            removed_directory: cleared == Cleared::DirectoryRemoved,
        })
    }

    /// Removes what is in the way.
    fn clear(
        &mut self,
        path: &Path,
        name: &OsStr,
        parent: &OwnedFd,
        new: EntryKind,
    ) -> Result<Cleared> {
        let st = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(st) => st,
            Err(Errno::NOENT) => return Ok(Cleared::Nothing),
            Err(errno) => return Err(errno).context("stat", path),
        };
        let is_dir = FileType::from_raw_mode(st.st_mode) == FileType::Directory;
        let becomes_dir = new == EntryKind::Directory;
        if is_dir && becomes_dir {
            return Ok(Cleared::DirectoryStays);
        }
        if self.options.no_overwrite_dir_non_dir && is_dir != becomes_dir {
            let word = |dir| if dir { "directory" } else { "non-directory" };
            return Err(Error::KindConflict {
                path: path.into(),
                existing: word(is_dir),
                new: word(becomes_dir),
            });
        }
        let whiteout =
            self.options.whiteouts == UnpackWhiteouts::Overlay && crate::whiteout::is_whiteout(&st);
        remove_all(parent.as_fd(), name)?;
        Ok(match (is_dir, whiteout) {
            (true, _) => Cleared::DirectoryRemoved,
            (false, true) => Cleared::Whiteout,
            (false, false) => Cleared::Nothing,
        })
    }

    fn file(
        &mut self,
        path: &Path,
        name: &OsStr,
        parent: &OwnedFd,
        entry: &Entry,
        data: &mut Stream<&mut impl Read>,
    ) -> Result<()> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(parent, name, flags, Mode::from_raw_mode(0o600)).context("create", path)?;
        let mut file = std::fs::File::from(fd);
        match &entry.segments {
            None => self.copy(&mut file, entry.size_bytes, path, data)?,
            Some(segments) => {
                for (offset, len) in segments {
                    file.seek(SeekFrom::Start(*offset))
                        .context("seek in", path)?;
                    self.copy(&mut file, *len, path, data)?;
                }
                file.set_len(entry.size_bytes)
                    .context("set the length of", path)?;
            }
        }
        let (uid, gid) = self.owner(entry)?;
        fchown(&file, Some(uid), Some(gid)).context("change the owner of", path)?;
        fchmod(&file, Mode::from_raw_mode(entry.mode)).context("change the mode of", path)?;
        self.xattrs(Target::Fd(file.as_fd()), path, entry)?;
        futimens(&file, &timestamps(entry)).context("set the times of", path)
    }

    fn copy(
        &mut self,
        file: &mut std::fs::File,
        len: u64,
        path: &Path,
        data: &mut Stream<&mut impl Read>,
    ) -> Result<()> {
        let mut left = len;
        while left > 0 {
            let want = left.min(self.buffer.len() as u64) as usize;
            let got = match data.read(&mut self.buffer[..want]) {
                Ok(got) => got,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Err(Error::Truncated(path.into()));
                }
                Err(e) => return Err(Error::Read(e)),
            };
            if got == 0 {
                return Err(Error::Truncated(path.into()));
            }
            file.write_all(&self.buffer[..got]).context("write", path)?;
            left -= got as u64;
        }
        Ok(())
    }

    /// The target is a name in the archive, found beneath the root; it is not followed.
    fn hard_link(
        &mut self,
        path: &Path,
        name: &OsStr,
        parent: &OwnedFd,
        entry: &Entry,
    ) -> Result<()> {
        let target = clean(&entry.link)?;
        let Some(target_name) = target.file_name() else {
            return Err(Error::Invalid(format!(
                "{} is a hard link to a directory",
                path.display()
            )));
        };
        let target_dir = self.dest.join(target.parent().unwrap_or(Path::new("")));
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let target_parent = open_raw(self.root, &target_dir, flags, ResolveFlags::IN_ROOT);
        let target_parent = target_parent.context("find the hard link's target", &target)?;
        if self.options.whiteouts == UnpackWhiteouts::Overlay
            && whiteout_at(&target_parent, Path::new(target_name))
        {
            return Err(Error::Invalid(format!(
                "{} is a hard link to a deleted file",
                path.display()
            )));
        }
        linkat(&target_parent, target_name, parent, name, AtFlags::empty()).context("link", path)
    }

    fn directory_attributes(&mut self, dir: &OwnedFd, path: &Path, entry: &Entry) -> Result<()> {
        let (uid, gid) = self.owner(entry)?;
        fchown(dir, Some(uid), Some(gid)).context("change the owner of", path)?;
        fchmod(dir, Mode::from_raw_mode(entry.mode)).context("change the mode of", path)?;
        self.xattrs(Target::Fd(dir.as_fd()), path, entry)?;
        self.times.push((path.to_path_buf(), timestamps(entry)));
        Ok(())
    }

    /// Attributes of what cannot be opened.
    fn name_attributes(
        &mut self,
        path: &Path,
        name: &OsStr,
        parent: &OwnedFd,
        entry: &Entry,
    ) -> Result<()> {
        let (uid, gid) = self.owner(entry)?;
        chownat(
            parent,
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .context("change the owner of", path)?;
        if entry.kind != EntryKind::Symlink {
            // Made with O_EXCL semantics just now; without AT_SYMLINK_NOFOLLOW, which fchmodat lacks on older kernels,
            // someone with write access to the parent could turn it into a link that leads elsewhere.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let node = openat(parent, name, flags, Mode::empty()).context("open", path)?;
            let proc = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&node));
            let mode = Mode::from_raw_mode(entry.mode);
            let st = rustix::fs::fstat(&node).context("stat", path)?;
            if FileType::from_raw_mode(st.st_mode) != FileType::Symlink {
                chmodat(rustix::fs::CWD, proc.as_str(), mode, AtFlags::empty())
                    .context("change the mode of", path)?;
            }
        }
        self.xattrs(Target::At(parent.as_fd(), Path::new(name)), path, entry)?;
        utimensat(parent, name, &timestamps(entry), AtFlags::SYMLINK_NOFOLLOW)
            .context("set the times of", path)
    }

    fn xattrs(&mut self, target: Target<'_>, path: &Path, entry: &Entry) -> Result<()> {
        for (name, value) in entry.xattrs.iter().filter(|(name, _)| travels(name)) {
            if !target.set(name, value).context("set attributes of", path)? {
                self.unpacked.skipped_xattrs += 1;
            }
        }
        Ok(())
    }

    fn owner(&self, entry: &Entry) -> Result<(Uid, Gid)> {
        let (uid, gid) = match self.options.ownership {
            Ownership::Fixed { uid, gid } => (uid, gid),
            Ownership::Archive => (id(entry.uid, "uid", entry)?, id(entry.gid, "gid", entry)?),
        };
        Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
    }

    /// Directories get their times last, for making their contents changed them.
    fn directory_times(&mut self) -> Result<()> {
        for (path, times) in std::mem::take(&mut self.times) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            match open_raw(
                self.root,
                &self.dest.join(&path),
                flags,
                ResolveFlags::IN_ROOT,
            ) {
                Ok(dir) => futimens(&dir, &times).context("set the times of", &path)?,
                // Removed or replaced by a later entry of the same archive.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(errno).context("open", &path),
            }
        }
        Ok(())
    }
}

struct Made {
    removed_directory: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cleared {
    Nothing,
    DirectoryStays,
    DirectoryRemoved,
    Whiteout,
}

/// `(uid_t) -1` means "unchanged" to the kernel, so it is out of range too.
fn id(value: i64, what: &str, entry: &Entry) -> Result<u32> {
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Error::Invalid(format!(
            "{what} {value} of {} is out of range",
            entry.display_name().display()
        ))),
    }
}

fn timestamps(entry: &Entry) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT as _,
        },
        last_modification: Timespec {
            tv_sec: entry.mtime_seconds,
            tv_nsec: entry.mtime_nanos as _,
        },
    }
}
