//! Embeds the default image: writes `toolbox.tar` to `OUT_DIR` for `include_bytes!`.

use std::path::PathBuf;

#[path = "image_asset/toolbox.rs"]
mod toolbox;

fn main() {
    println!("cargo::rerun-if-env-changed={}", toolbox::BUSYBOX_VARIABLE);
    println!("cargo::rerun-if-changed=image_asset/toolbox.rs");
    if let Err(message) = make() {
        for line in message.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn make() -> Result<(), String> {
    let busybox = toolbox::find_busybox()?;
    println!("cargo::rerun-if-changed={}", busybox.display());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?)
        .join("toolbox.tar");
    let archive = toolbox::build(&busybox)?;
    std::fs::write(&out, archive).map_err(|e| format!("cannot write {}: {e}", out.display()))
}
