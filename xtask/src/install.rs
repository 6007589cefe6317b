//! Installs the programs, the systemd units, completions and man pages beneath a prefix.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::build::PROGRAMS;
use crate::shell::{output, root};

/// Where to.
#[derive(clap::Args)]
pub struct Options {
    /// Beneath which directory
    #[arg(long, default_value = "/usr/local")]
    prefix: PathBuf,
    /// Put this in front of every path (for packagers)
    #[arg(long, default_value = "")]
    destdir: PathBuf,
}

/// Builds and installs.
pub fn run(options: &Options) -> Result<()> {
    let dist = crate::build::run()?;
    let beneath = |path: &Path| {
        let relative = path.strip_prefix("/").unwrap_or(path);
        if options.destdir.as_os_str().is_empty() {
            path.to_path_buf()
        } else {
            options.destdir.join(relative)
        }
    };
    let bin = options.prefix.join("bin");
    for program in PROGRAMS {
        let content = fs::read(dist.join(program))
            .with_context(|| format!("no {program} in {}", dist.display()))?;
        place(&beneath(&bin.join(program)), &content, 0o755)?;
    }
    let caisson = dist.join("caisson");
    for (shell, path) in [
        ("bash", "share/bash-completion/completions/caisson"),
        ("zsh", "share/zsh/site-functions/_caisson"),
        ("fish", "share/fish/vendor_completions.d/caisson.fish"),
    ] {
        let script = output(Command::new(&caisson).args(["completion", shell]))?;
        place(
            &beneath(&options.prefix.join(path)),
            script.as_bytes(),
            0o644,
        )?;
    }
    let pages = beneath(&options.prefix.join("share/man/man1"));
    fs::create_dir_all(&pages)?;
    output(Command::new(&caisson).arg("man").arg(&pages))?;
    for unit in ["caisson.service", "caisson.socket"] {
        let text = fs::read_to_string(root().join("contrib/systemd").join(unit))?;
        let text = text.replace(
            "/usr/bin/caisson",
            &bin.join("caisson").display().to_string(),
        );
        place(
            &beneath(&Path::new("/etc/systemd/system").join(unit)),
            text.as_bytes(),
            0o644,
        )?;
    }
    println!(
        "install: done. Start it with `systemctl enable --now caisson.socket`, or let the first command start it."
    );
    Ok(())
}

fn place(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let directory = path.parent().context("a file needs a directory")?;
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let partial = path.with_extension("partial");
    fs::write(&partial, content).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(mode))?;
    fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))?;
    println!("install: {}", path.display());
    Ok(())
}
