//! Opening what a spec names: inherited descriptors, each of which has one owner, and paths.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;

use caisson_protocol::vmm::Resource;

use crate::error::{Error, Result};
use crate::sys;

thread_local! {
    /// Inherited descriptors that have an owner already. One thread opens what a spec names.
    static OWNED: RefCell<BTreeSet<i32>> = const { RefCell::new(BTreeSet::new()) };
}

/// Descriptors that a machine with many devices has.
const DESCRIPTORS: i32 = 255;

/// Has the kernel make its table of descriptors large now: later, with threads, each doubling waits for a grace period.
pub fn make_room() {
    // it is closed at once; where it cannot be, it is only slower
    drop(rustix::io::fcntl_dupfd_cloexec(
        std::io::stderr(),
        DESCRIPTORS,
    ));
}

/// How a path is opened; a descriptor comes as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading.
    Read,
    /// For reading and writing.
    ReadWrite,
    /// For writing at its end; made when it is not there.
    Append,
}

/// Opens a resource; `what` names it in errors.
pub fn open(what: &str, resource: &Resource, access: Access) -> Result<File> {
    match resource {
        Resource::Fd(number) => adopt(what, *number).map(File::from),
        Resource::Path(path) => {
            let mut options = OpenOptions::new();
            match access {
                Access::Read => options.read(true),
                Access::ReadWrite => options.read(true).write(true),
                Access::Append => options.append(true).create(true),
            };
            options.open(path).map_err(|source| Error::Resource {
                what: format!("{what} {}", path.display()),
                source,
            })
        }
    }
}

/// Takes an inherited descriptor over; each can be taken once.
pub fn adopt(what: &str, number: i32) -> Result<OwnedFd> {
    let error = |source| Error::Resource {
        what: format!("{what}: descriptor {number}"),
        source,
    };
    if number <= libc::STDERR_FILENO || OWNED.with_borrow(|owned| owned.contains(&number)) {
        let taken = std::io::Error::other("it is in use for something else");
        return Err(error(taken));
    }
    let fd = sys::adopt(number).map_err(error)?;
    OWNED.with_borrow_mut(|owned| owned.insert(number));
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn a_descriptor_has_one_owner_and_must_be_open() {
        let number = File::open("/dev/null").expect("/dev/null").into_raw_fd();
        let owned = open("a disk", &Resource::Fd(number), Access::Read).expect("it is open");
        let again = open("a disk", &Resource::Fd(number), Access::Read).expect_err("it is taken");
        assert!(again.to_string().contains("in use"), "{again}");
        drop(owned);
        assert!(adopt("a disk", 900).is_err());
        assert!(adopt("a disk", 1).is_err());
        assert!(adopt("a disk", -1).is_err());
    }

    #[test]
    fn a_missing_path_is_named() {
        let path = Resource::Path("/nowhere/kernel".into());
        let error = open("the kernel", &path, Access::Read).expect_err("it is not there");
        assert!(
            error
                .to_string()
                .starts_with("the kernel /nowhere/kernel: "),
            "{error}"
        );
    }
}
