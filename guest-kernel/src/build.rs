//! Building the image, or finding the one that was built before.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::config::{check, fragments};
use crate::error::{Error, Result};
use crate::patches::patches;
use crate::source::Source;

/// A built kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The folder that holds it (see the crate's page).
    pub dir: PathBuf,
}

impl Kernel {
    /// The image: an uncompressed ELF.
    pub fn image(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// Its symbols.
    pub fn symbols(&self) -> PathBuf {
        self.dir.join("System.map")
    }
}

/// The kernel made of `source` with today's fragments and compiler, if it has been built below `out`.
pub fn find(source: &Source, out: &Path) -> Result<Option<Kernel>> {
    let kernel = Kernel {
        dir: out.join("guest-kernel").join(&key(source)?[..16]),
    };
    Ok(kernel.image().exists().then_some(kernel))
}

/// Builds it with `jobs` compilers at once, unless it is there already. Takes 3–5 minutes on two cores.
pub fn build(source: &Source, out: &Path, jobs: usize) -> Result<Kernel> {
    if let Some(kernel) = find(source, out)? {
        return Ok(kernel);
    }
    let home = out.join("guest-kernel");
    let tree = home.join("build");
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(&tree).map_err(Error::io(&tree))?;
    let log = home.join("build.log");
    File::create(&log).map_err(Error::io(&log))?;

    let mut tar = Command::new("tar");
    tar.args(["--strip-components=1", "-xf"])
        .arg(&source.tarball)
        .arg("-C")
        .arg(&tree);
    step("unpacking the kernel's source", &mut tar, &log)?;

    for (name, text) in patches() {
        let file = tree.join(format!("{name}.patch"));
        fs::write(&file, text).map_err(Error::io(&file))?;
        let mut patch = Command::new("patch");
        patch.args(["-p1", "-i"]).arg(&file).current_dir(&tree);
        step("patching the kernel's source", &mut patch, &log)?;
    }

    let wanted = tree.join("caisson.config");
    let text: String = fragments().iter().map(|(_, text)| *text).collect();
    fs::write(&wanted, text).map_err(Error::io(&wanted))?;
    step(
        "configuring the kernel",
        make(&tree, jobs)
            .env("KCONFIG_ALLCONFIG", &wanted)
            .arg("allnoconfig"),
        &log,
    )?;
    let config_file = tree.join(".config");
    let config = fs::read_to_string(&config_file).map_err(Error::io(&config_file))?;
    let missing = check(&config);
    if !missing.is_empty() {
        return Err(Error::Config(
            missing.iter().map(|m| format!("{m}\n")).collect(),
        ));
    }
    step(
        "compiling the kernel",
        make(&tree, jobs).arg("vmlinux"),
        &log,
    )?;

    let made = home.join("made");
    let _ = fs::remove_dir_all(&made);
    fs::create_dir_all(&made).map_err(Error::io(&made))?;
    let mut strip = Command::new("objcopy");
    strip
        .arg("--strip-debug")
        .arg(tree.join("vmlinux"))
        .arg(made.join("vmlinux"));
    step("stripping the kernel", &mut strip, &log)?;
    for (from, to) in [(".config", "config"), ("System.map", "System.map")] {
        fs::copy(tree.join(from), made.join(to)).map_err(Error::io(tree.join(from)))?;
    }
    let kernel = Kernel {
        dir: home.join(&key(source)?[..16]),
    };
    fs::rename(&made, &kernel.dir).map_err(Error::io(&kernel.dir))?;
    fs::remove_dir_all(&tree).map_err(Error::io(&tree))?;
    Ok(kernel)
}

/// Everything the image depends on. The build's time, user and host are fixed, so that equal keys give equal bytes.
fn key(source: &Source) -> Result<String> {
    let compiler = Command::new("gcc")
        .arg("--version")
        .output()
        .map_err(|source| Error::Tool {
            tool: "gcc",
            source,
        })?;
    let mut hasher = Sha256::new();
    hasher.update(&source.sha256);
    for (name, text) in fragments().into_iter().chain(patches()) {
        hasher.update(name);
        hasher.update(text);
    }
    hasher.update(compiler.stdout);
    Ok(hex::encode(hasher.finalize()))
}

fn make(tree: &Path, jobs: usize) -> Command {
    let mut make = Command::new("make");
    make.arg("-s").arg(format!("-j{jobs}")).current_dir(tree);
    make.env("KBUILD_BUILD_TIMESTAMP", "@0")
        .env("KBUILD_BUILD_USER", "caisson")
        .env("KBUILD_BUILD_HOST", "caisson");
    make
}

fn step(step: &'static str, command: &mut Command, log: &Path) -> Result<()> {
    let out = File::options()
        .append(true)
        .open(log)
        .map_err(Error::io(log))?;
    let err = out.try_clone().map_err(Error::io(log))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .status();
    let status = status.map_err(|source| Error::Tool {
        tool: "tar, patch, make or objcopy",
        source,
    })?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::Step {
            step,
            log: log.into(),
        })
    }
}
