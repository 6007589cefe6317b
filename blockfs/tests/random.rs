//! Random trees: what goes in comes out, and Debian's fsck.erofs has nothing to say.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use caisson_blockfs::erofs::create;
use caisson_blockfs::{Attributes, Content, Kind, NodeId, Tree};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use support::{Facts, Listing, assert_same, image, tool};

/// One step of making a tree: in which directory, under which name, what.
#[derive(Clone, Debug)]
struct Step {
    parent: prop::sample::Index,
    name: String,
    attributes: Attributes,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Directory,
    File(usize, u8),
    Symlink(String),
    Device(bool, u32, u32),
    Fifo,
    Socket,
    Link(prop::sample::Index),
    /// A directory with so many files whose names have so many bytes.
    Many(usize, usize),
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let value = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40),
        1 => (0_usize..5000).prop_map(|n| vec![5; n]),
        // Shared by whoever has it.
        2 => Just(b"the same".to_vec()),
    ];
    let name = prop::sample::select(vec![
        "user.a",
        "user.b",
        "user.a-longer-name",
        "security.capability",
        "trusted.t",
    ]);
    (
        0_u16..0o10000,
        any::<(u32, u32, i32)>(),
        0_u32..1_000_000_000,
        prop::collection::btree_map(name, value, 0..4),
    )
        .prop_map(
            |(mode, (uid, gid, seconds), mtime_nanos, xattrs)| Attributes {
                mode,
                uid,
                gid,
                mtime_seconds: i64::from(seconds) * 3,
                mtime_nanos,
                xattrs: xattrs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            },
        )
}

fn what() -> impl Strategy<Value = What> {
    // Around the sizes where a tail begins, ends or no longer fits beside its inode.
    let size = prop_oneof![
        Just(0_usize),
        1_usize..200,
        2000_usize..2100,
        3900_usize..4200,
        8000_usize..8300,
        0_usize..40_000,
    ];
    prop_oneof![
        4 => Just(What::Directory),
        8 => (size, any::<u8>()).prop_map(|(n, b)| What::File(n, b)),
        2 => "[a-z/.]{1,60}".prop_map(What::Symlink),
        1 => (4000_usize..4095).prop_map(|n| What::Symlink("l".repeat(n))),
        1 => (any::<bool>(), 0_u32..4096, 0_u32..1 << 20).prop_map(|(c, a, b)| What::Device(c, a, b)),
        1 => Just(What::Fifo),
        1 => Just(What::Socket),
        3 => any::<prop::sample::Index>().prop_map(What::Link),
        1 => (1_usize..400, 1_usize..200).prop_map(|(n, l)| What::Many(n, l)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let name = prop_oneof![4 => "[ -.0-~]{1,12}", 1 => "[a-c]{250,255}"];
    (any::<prop::sample::Index>(), name, attributes(), what()).prop_map(
        |(parent, name, attributes, what)| Step {
            parent,
            name,
            attributes,
            what,
        },
    )
}

/// The tree and what it should look like.
struct Model {
    tree: Tree,
    listing: Listing,
    directories: Vec<(NodeId, PathBuf)>,
    files: Vec<(NodeId, PathBuf)>,
}

impl Model {
    fn new(root: Attributes) -> Model {
        let tree = Tree::new(root.clone());
        let mut listing = Listing::new();
        listing.insert(PathBuf::new(), facts('d', &root, PathBuf::new()));
        let directories = vec![(tree.root(), PathBuf::new())];
        Model {
            tree,
            listing,
            directories,
            files: Vec::new(),
        }
    }

    fn add(&mut self, step: &Step) {
        let (parent, at) = step.parent.get(&self.directories).clone();
        let path = at.join(&step.name);
        let name = OsStr::new(&step.name);
        if step.name == "." || step.name == ".." || self.listing.contains_key(&path) {
            assert!(
                self.tree
                    .add(parent, name, Attributes::default(), Kind::Fifo)
                    .is_err()
            );
            return;
        }
        let mut made = facts('f', &step.attributes, path.clone());
        let kind = match &step.what {
            What::Link(target) => {
                if !self.files.is_empty() {
                    let (node, first) = target.get(&self.files).clone();
                    self.tree.link(parent, name, node).unwrap();
                    let linked = self.listing[&first].clone();
                    self.listing.insert(path, linked);
                }
                return;
            }
            What::Directory | What::Many(..) => {
                made.kind = 'd';
                Kind::Directory
            }
            What::File(size, seed) => {
                let bytes: Vec<u8> = (0..*size)
                    .map(|i| seed.wrapping_add((i / 7) as u8))
                    .collect();
                made.size = bytes.len() as u64;
                made.contents = Sha256::digest(&bytes).to_vec();
                Kind::File(Content::Bytes(bytes))
            }
            What::Symlink(target) => {
                made.kind = 'l';
                made.size = target.len() as u64;
                made.contents = target.clone().into_bytes();
                Kind::Symlink(target.clone().into_bytes())
            }
            What::Device(char_device, major, minor) => {
                (made.kind, made.device) = ('b', (*major, *minor));
                let (major, minor) = (*major, *minor);
                if *char_device {
                    made.kind = 'c';
                    Kind::CharDevice { major, minor }
                } else {
                    Kind::BlockDevice { major, minor }
                }
            }
            What::Fifo => {
                made.kind = 'p';
                Kind::Fifo
            }
            What::Socket => {
                made.kind = 's';
                Kind::Socket
            }
        };
        let node = self
            .tree
            .add(parent, name, step.attributes.clone(), kind)
            .unwrap();
        let directory = made.kind == 'd';
        self.listing.insert(path.clone(), made);
        if let What::Many(count, length) = step.what {
            for i in 0..count {
                let name = format!("{i:03}{}", "n".repeat(length));
                let attributes = Attributes::default();
                let inside = path.join(&name);
                let fifo = Facts {
                    kind: 'p',
                    ..facts('p', &attributes, inside.clone())
                };
                self.tree
                    .add(node, OsStr::new(&name), attributes, Kind::Fifo)
                    .unwrap();
                self.listing.insert(inside, fifo);
            }
        }
        if directory {
            self.directories.push((node, path));
        } else {
            self.files.push((node, path));
        }
    }
}

fn facts(kind: char, attributes: &Attributes, path: PathBuf) -> Facts {
    Facts {
        kind,
        mode: attributes.mode.into(),
        owner: (attributes.uid, attributes.gid),
        mtime: (attributes.mtime_seconds, attributes.mtime_nanos),
        links: 0,
        device: (0, 0),
        size: 0,
        contents: Vec::new(),
        xattrs: attributes.xattrs.iter().cloned().collect(),
        same_as: path,
    }
}

/// Names each inode by its first path and counts its links, which a model only knows at the end.
fn settle(listing: &mut Listing) {
    let mut groups: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    for (path, facts) in listing.iter() {
        groups
            .entry(facts.same_as.clone())
            .or_default()
            .push(path.clone());
    }
    for paths in groups.values() {
        for path in paths {
            let facts = listing.get_mut(path).unwrap();
            facts.same_as = paths[0].clone();
            if facts.kind != 'd' {
                facts.links = paths.len() as u64;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn what_goes_in_comes_out(root in attributes(), steps in prop::collection::vec(step(), 0..60)) {
        let mut model = Model::new(root);
        for step in &steps {
            model.add(step);
        }
        settle(&mut model.listing);
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let written = create(&model.tree, &one).unwrap();
        create(&model.tree, &two).unwrap();
        let bytes = std::fs::read(&one).unwrap();
        assert!(bytes == std::fs::read(&two).unwrap());
        assert_eq!(bytes.len() as u64, written.size_bytes);
        let mut actual = image(&bytes);
        settle(&mut actual);
        assert_same(&model.listing, &actual);
        tool(Command::new("fsck.erofs").arg("--extract").arg(&one));
    }
}
