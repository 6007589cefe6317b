//! Real images, none of which we wrote: Debian's minimal system, one with Python, one with Redis, as docker-archives.
//!
//! Kept in `target/images`, or where `CAISSON_TEST_IMAGES` says, until their recipe changes.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::shell::{is_root, on_path, output, run as run_command, target};

struct Recipe {
    name: &'static str,
    packages: &'static str,
    config: fn() -> Value,
}

const SUITE: &str = "bookworm";

const RECIPES: &[Recipe] = &[
    Recipe {
        name: "debian",
        packages: "",
        config: || json!({"Cmd": ["bash"]}),
    },
    Recipe {
        name: "python",
        packages: "python3-minimal",
        config: || json!({"Cmd": ["python3"]}),
    },
    Recipe {
        name: "redis",
        packages: "redis-server",
        config: || {
            json!({
                "Entrypoint": ["/usr/bin/env"],
                "Cmd": ["redis-server", "--bind", "127.0.0.1", "--dir", "/data"],
                "WorkingDir": "/data", "User": "redis", "ExposedPorts": {"6379/tcp": {}},
                "Healthcheck": {"Test": ["CMD", "redis-cli", "ping"], "Interval": 1_000_000_000_u64},
            })
        },
    },
];

/// Where they are.
pub fn directory() -> PathBuf {
    std::env::var_os("CAISSON_TEST_IMAGES").map_or_else(|| target().join("images"), PathBuf::from)
}

/// About 300 MB, for `bench`.
const LARGE: Recipe = Recipe {
    name: "large",
    packages: "python3,git,vim",
    config: || json!({"Cmd": ["bash"]}),
};

/// Makes those that are missing; returns the directory.
pub fn run() -> Result<PathBuf> {
    make_missing(RECIPES)
}

/// Those that are there, the large one aside.
pub fn archives() -> Vec<PathBuf> {
    RECIPES
        .iter()
        .map(|recipe| directory().join(format!("{}.tar", recipe.name)))
        .filter(|archive| archive.exists())
        .collect()
}

/// Makes the large image if it is missing; returns its archive.
pub fn large() -> Result<PathBuf> {
    Ok(make_missing(&[LARGE])?.join("large.tar"))
}

fn make_missing(recipes: &[Recipe]) -> Result<PathBuf> {
    let directory = directory();
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    for recipe in recipes {
        let archive = directory.join(format!("{}.tar", recipe.name));
        if archive.exists() {
            println!("images: {} is there", archive.display());
            continue;
        }
        if !is_root() {
            bail!("debootstrap needs root: run this task as root");
        }
        if on_path("debootstrap").is_none() {
            bail!("no debootstrap: run `cargo xtask setup --tests`");
        }
        println!(
            "images: making {} with debootstrap (half a minute)",
            recipe.name
        );
        make(recipe, &directory, &archive)
            .with_context(|| format!("cannot make the image {}", recipe.name))?;
    }
    Ok(directory)
}

fn make(recipe: &Recipe, directory: &Path, archive: &Path) -> Result<()> {
    let scratch = tempfile::Builder::new()
        .prefix("making-")
        .tempdir_in(directory)?;
    let root = scratch.path().join("root");
    let log = File::create(scratch.path().join("log"))?;
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.arg("--variant=minbase");
    if !recipe.packages.is_empty() {
        debootstrap.arg(format!("--include={}", recipe.packages));
    }
    debootstrap.arg(SUITE).arg(&root);
    debootstrap.stdout(log.try_clone()?).stderr(log);
    if let Err(error) = run_command(&mut debootstrap) {
        let log = std::fs::read_to_string(scratch.path().join("log")).unwrap_or_default();
        bail!(
            "{error:#}\n{}",
            log.lines().rev().take(20).collect::<Vec<_>>().join("\n")
        );
    }
    for useless in ["var/cache/apt/archives", "var/lib/apt/lists"] {
        let path = root.join(useless);
        for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    let data = root.join("data");
    if recipe.name == "redis" {
        std::fs::create_dir(&data)?;
        run_command(
            Command::new("chroot")
                .arg(&root)
                .args(["chown", "redis:redis", "/data"]),
        )?;
    }
    let layer = scratch.path().join("layer.tar");
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "--xattrs", "--sort=name", "-cf"])
        .arg(&layer)
        .arg("-C")
        .arg(&root)
        .arg(".");
    run_command(&mut tar)?;
    let digest = output(Command::new("sha256sum").arg(&layer))?;
    let digest = digest
        .split_whitespace()
        .next()
        .context("sha256sum printed nothing")?
        .to_string();

    let mut container = (recipe.config)();
    container["Env"] = json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = json!({
        "architecture": architecture, "os": "linux", "created": "2026-01-01T00:00:00Z", "config": container,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        "history": [{"created": "2026-01-01T00:00:00Z", "created_by": format!("debootstrap {SUITE} {}", recipe.packages)}],
    })
    .to_string();
    let config_name = format!(
        "{:x}.json",
        HexDigest(Sha256::digest(config.as_bytes()).to_vec())
    );
    let manifest = json!([{"Config": config_name, "RepoTags": [format!("{}:latest", recipe.name)], "Layers": ["layer.tar"]}]);

    let partial = archive.with_extension("partial");
    let mut builder = tar::Builder::new(BufWriter::new(File::create(&partial)?));
    for (name, content) in [
        ("manifest.json", manifest.to_string()),
        (config_name.as_str(), config),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content.as_bytes())?;
    }
    builder.append_path_with_name(&layer, "layer.tar")?;
    builder.into_inner()?.flush()?;
    std::fs::rename(&partial, archive)?;
    Ok(())
}

struct HexDigest(Vec<u8>);

impl std::fmt::LowerHex for HexDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
