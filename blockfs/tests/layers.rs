//! Stacked layers against overlayfs, which is what they must look like.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use caisson_blockfs::Tree;
use caisson_blockfs::erofs::create;
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat};
use support::{Listing, Mounted, assert_same, directory, image, privileged};

/// What one layer does at a path.
#[derive(Clone, Debug)]
enum Act {
    File(u16),
    Directory,
    Opaque,
    Whiteout,
    Symlink,
    /// A link to the layer's first file.
    Link,
    Device,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0_u16..9000).prop_map(Act::File),
        6 => Just(Act::Directory),
        2 => Just(Act::Opaque),
        2 => Just(Act::Whiteout),
        1 => Just(Act::Symlink),
        2 => Just(Act::Link),
        1 => Just(Act::Device),
    ]
}

/// Few names, so that layers meet.
fn path() -> impl Strategy<Value = PathBuf> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|names| names.iter().collect())
}

/// Does what is possible and leaves out the rest.
fn build(root: &Path, acts: &[(PathBuf, Act)]) {
    fs::create_dir(root).unwrap();
    let mut first = None;
    for (at, act) in acts {
        let path = root.join(at);
        let _ = fs::create_dir_all(path.parent().unwrap());
        match act {
            Act::File(size) => {
                if fs::write(&path, vec![b'x'; usize::from(*size)]).is_ok() {
                    first = first.or(Some(path));
                }
            }
            Act::Directory => _ = fs::create_dir(&path),
            Act::Opaque => {
                let _ = fs::create_dir(&path);
                if path.is_dir() {
                    let flags = XattrFlags::empty();
                    rustix::fs::lsetxattr(&path, "trusted.overlay.opaque", b"y", flags).unwrap();
                }
            }
            Act::Whiteout => node(&path, 0, 0),
            Act::Symlink => _ = std::os::unix::fs::symlink("/etc", &path),
            Act::Link => {
                if let Some(first) = &first {
                    let _ = fs::hard_link(first, &path);
                }
            }
            Act::Device => node(&path, 1, 3),
        }
    }
}

fn node(path: &Path, major: u32, minor: u32) {
    let device = makedev(major, minor);
    let mode = Mode::from_raw_mode(0o600);
    let _ = mknodat(CWD, path, FileType::CharacterDevice, mode, device);
}

/// The union by overlayfs; a layer's hard links appear with their count in the layer, so counts are left out.
fn by_overlay(layers: &[PathBuf]) -> Option<Listing> {
    let lower: Vec<_> = layers.iter().map(|l| l.to_str().unwrap()).collect();
    // overlayfs wants two lower directories at least.
    let empty = tempfile::tempdir().unwrap();
    let options = format!("ro,lowerdir={}:{}", lower.join(":"), empty.path().display());
    let mounted = Mounted::new("overlay", &options, Path::new("overlay"))?;
    Some(directory(mounted.path()))
}

fn compare(layers: &[PathBuf]) {
    let Some(mut expected) = by_overlay(layers) else {
        return;
    };
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("image");
    create(&Tree::from_layers(layers).unwrap(), &out).unwrap();
    let mut actual = image(&fs::read(&out).unwrap());
    for facts in expected.values_mut().chain(actual.values_mut()) {
        facts.links = 0;
    }
    assert_same(&expected, &actual);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn layers_stack_as_overlayfs_stacks_them(
        layers in prop::collection::vec(prop::collection::vec((path(), act()), 0..14), 1..4)
    ) {
        if !privileged() {
            return Ok(());
        }
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..layers.len()).map(|i| dir.path().join(i.to_string())).collect();
        for (acts, path) in layers.iter().zip(&paths) {
            build(path, acts);
        }
        compare(&paths);
    }
}

#[test]
fn a_link_in_a_layer_leads_out_of_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let layer = dir.path().join("layer");
    fs::create_dir(&layer).unwrap();
    std::os::unix::fs::symlink("/etc", layer.join("dir")).unwrap();
    let below = dir.path().join("below");
    fs::create_dir_all(below.join("dir")).unwrap();
    fs::write(below.join("dir/hosts"), "the layer's").unwrap();
    let out = dir.path().join("image");
    // Topmost is the directory: what is below the link of the other layer is not its target's.
    create(&Tree::from_layers(&[below, layer]).unwrap(), &out).unwrap();
    let listing = image(&fs::read(&out).unwrap());
    let paths: Vec<_> = listing.keys().collect();
    assert_eq!(
        paths,
        ["", "dir", "dir/hosts"]
            .map(Path::new)
            .iter()
            .collect::<Vec<_>>()
    );
}
