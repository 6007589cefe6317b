//! The guest's first disk: the agent, linked statically, in an EROFS image with the directories that it mounts over.
//!
//! ```text
//!   target/dist/guest/agent.erofs, target/dist/caisson-agent     what is shipped: small, as every page is read at each boot
//!   target/debug/guest/agent.erofs                               the same, beside the programs that tests run
//! ```

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use caisson_blockfs::{Attributes, Content, Kind, Tree, erofs};

use crate::build;
use crate::shell::{self, cargo, target};

const PROGRAM: &str = "caisson-agent";
const IMAGE: &str = "agent.erofs";
const PROFILE: &str = "guest";

/// What the agent mounts over.
const MOUNT_POINTS: [&str; 4] = ["proc", "run", "sys", "tmp"];

/// Needed before the agent has mounted `/dev`: by the kernel for the agent's standard streams, by Rust's runtime when there
/// is no console.
const EARLY_DEVICES: [(&str, u32, u32); 2] = [("console", 5, 1), ("null", 1, 3)];

/// Builds program and image.
pub fn run() -> Result<()> {
    println!("build: {PROGRAM} (static)");
    let mut command = cargo();
    command.args(["build", "--profile", PROFILE, "--package", PROGRAM]);
    command.args(["--target", shell::TRIPLE]);
    // At a fixed address: there are no relocations to be read from the disk and applied at each boot.
    let flags = format!("{} -C relocation-model=static", shell::static_flags());
    command.env("RUSTFLAGS", flags);
    shell::run(&mut command)?;
    let program = target().join(shell::TRIPLE).join(PROFILE).join(PROGRAM);

    let [shipped, debug] = build::guest_directories()?;
    let image = shipped.join(IMAGE);
    let tree = tree(&program)?;
    erofs::create(&tree, &image).with_context(|| format!("cannot write {}", image.display()))?;
    shell::install(&image, &debug.join(IMAGE))?;
    shell::install(&program, &target().join("dist").join(PROGRAM))?;
    println!("build: {}", image.display());
    Ok(())
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
