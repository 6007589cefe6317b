//! The guest's first disk: the agent, linked statically, in an EROFS image with the directories that it mounts over.
//!
//! ```text
//!   target/dist/guest/agent.erofs, target/dist/caisson-agent     what is shipped
//!   target/debug/guest/agent.erofs                               beside the programs that tests run
//! ```

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use caisson_blockfs::{Attributes, Content, Kind, Tree, erofs};

use crate::shell::{self, cargo, target};

const PROGRAM: &str = "caisson-agent";
const IMAGE: &str = "agent.erofs";

/// What the agent mounts over.
const MOUNT_POINTS: [&str; 4] = ["proc", "run", "sys", "tmp"];

/// Needed before the agent has mounted `/dev`: by the kernel for the agent's standard streams, by Rust's runtime when there
/// is no console.
const EARLY_DEVICES: [(&str, u32, u32); 2] = [("console", 5, 1), ("null", 1, 3)];

/// Which build of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// Small: every page of it is read from the disk at each boot.
    Shipped,
    /// Quickly made.
    Debug,
}

impl Build {
    fn profile(self) -> &'static str {
        match self {
            Build::Shipped => "guest",
            Build::Debug => "dev",
        }
    }

    /// Where the programs are that look for the guest's files beside themselves.
    fn beside(self) -> PathBuf {
        match self {
            Build::Shipped => target().join("dist"),
            Build::Debug => target().join("debug"),
        }
    }
}

/// Builds program and image; returns the image's path.
pub fn run(build: Build) -> Result<PathBuf> {
    println!("build: {PROGRAM} (static)");
    let mut command = cargo();
    command.args([
        "build",
        "--profile",
        build.profile(),
        "--target",
        shell::TRIPLE,
        "--package",
        PROGRAM,
    ]);
    // At a fixed address: there are no relocations to be read from the disk and applied at each boot.
    let flags = format!("{} -C relocation-model=static", shell::static_flags());
    command.env("RUSTFLAGS", flags);
    shell::run(&mut command)?;
    let directory = match build {
        Build::Shipped => "guest",
        Build::Debug => "debug",
    };
    let program = target().join(shell::TRIPLE).join(directory).join(PROGRAM);

    let guest = build.beside().join("guest");
    fs::create_dir_all(&guest).with_context(|| format!("cannot make {}", guest.display()))?;
    let image = guest.join(IMAGE);
    let tree = tree(&program)?;
    erofs::create(&tree, &image).with_context(|| format!("cannot write {}", image.display()))?;
    if build == Build::Shipped {
        shell::install(&program, &build.beside().join(PROGRAM))?;
    }
    println!("build: {}", image.display());
    Ok(image)
}

fn tree(program: &Path) -> Result<Tree> {
    let directory = program.parent().context("the program is in no directory")?;
    let opened =
        File::open(directory).with_context(|| format!("cannot open {}", directory.display()))?;
    let size_bytes = fs::metadata(program)
        .with_context(|| format!("cannot find {}", program.display()))?
        .len();
    let mode = |mode| Attributes {
        mode,
        ..Attributes::default()
    };
    let mut tree = Tree::new(mode(0o755));
    let root = tree.root();
    for name in MOUNT_POINTS {
        tree.add(root, OsStr::new(name), mode(0o555), Kind::Directory)?;
    }
    let dev = tree.add(root, OsStr::new("dev"), mode(0o755), Kind::Directory)?;
    for (name, major, minor) in EARLY_DEVICES {
        let device = Kind::CharDevice { major, minor };
        tree.add(dev, OsStr::new(name), mode(0o600), device)?;
    }
    let content = Content::Beneath {
        root: Arc::new(opened.into()),
        path: PROGRAM.into(),
        size_bytes,
    };
    tree.add(root, OsStr::new("agent"), mode(0o555), Kind::File(content))?;
    Ok(tree)
}
