//! tar in and out of a directory file descriptor, never escaping it
