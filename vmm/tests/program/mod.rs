//! A Linux guest for tests: its kernel, a static program as its init.

mod archive;

use std::path::{Path, PathBuf};
use std::process::Command;

/// The guest's kernel and, in `files`, this C program (of `tests/`) and an initial file system that it is the init of.
pub struct Program {
    pub kernel: PathBuf,
    #[allow(dead_code)] // not every test runs it here too
    pub file: PathBuf,
    pub initramfs: PathBuf,
}

impl Program {
    /// `None`, with the reason printed, where there is no KVM, kernel or compiler.
    pub fn with_init(source: &str, files: &Path) -> Option<Self> {
        let kvm = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm");
        if let Err(e) = kvm {
            println!("skipped: /dev/kvm: {e}");
            return None;
        }
        let target = Path::new(env!("CARGO_BIN_EXE_caisson-vmm"))
            .ancestors()
            .nth(2);
        let built = target.unwrap_or(Path::new("target")).join("dist/guest");
        let named = std::env::var_os("CAISSON_GUEST_DIR").map(PathBuf::from);
        let kernel = named.unwrap_or(built).join("vmlinux");
        if !kernel.is_file() {
            let path = kernel.display();
            println!(
                "skipped: no {path} (cargo xtask kernel makes it; CAISSON_GUEST_DIR names its directory)"
            );
            return None;
        }
        let file = files.join("program");
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests")
            .join(source);
        let compiled = Command::new("cc")
            .args(["-static", "-O1", "-w", "-o"])
            .args([&file, &source])
            .status();
        if !compiled.is_ok_and(|status| status.success()) {
            println!("skipped: no C compiler makes static programs here");
            return None;
        }
        let initramfs = files.join("initramfs");
        let bytes = std::fs::read(&file).expect("the program");
        std::fs::write(&initramfs, archive::with_init(&bytes)).expect("an archive");
        Some(Program {
            kernel,
            file,
            initramfs,
        })
    }
}

/// A quiet kernel that runs `/init` of its initial file system.
pub const COMMAND_LINE: &str = "console=ttyS0 reboot=k panic=-1 quiet loglevel=0 rdinit=/init";
