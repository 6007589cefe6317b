//! `cargo xtask kernel-coverage`: does the guest's kernel contain an instruction that nobody would execute?
//!
//! On hosts whose KVM emulates ring 0, each instruction of the kernel is executed by KVM's emulator (`emulator`: what
//! upstream's executes), by what such hosts add to it (`host`), or by the assist (its own list, read from its source).
//! This tool disassembles every executable section and every replacement that the kernel may patch into itself, and sorts
//! each distinct form into one of those, or into what is not reached there (`unreached`, with the reason).
//! What is left fails the check.
//!
//! Must not know: how instructions are completed.

mod elf;
mod emulator;
mod host;
mod unreached;

#[path = "../../../vmm/src/assist/completed.rs"]
#[allow(dead_code)]
mod completed;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter, Instruction};

use completed::Completion;
use elf::{Elf, Section};

/// Check the guest's kernel.
#[derive(clap::Args, Debug)]
pub struct Coverage {
    /// An ELF vmlinux with its symbols, instead of the one that `cargo xtask kernel` built
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// List every form, not only a summary
    #[arg(long)]
    all: bool,
}

/// Who executes a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    Emulator,
    Host,
    Assist,
    Unreached(&'static str),
    Nobody,
}

/// One distinct instruction form: equal code, equal kinds of operands.
struct Form {
    by: By,
    count: usize,
    example: String,
    /// The functions that contain it, or whose instructions are replaced by it.
    places: BTreeSet<String>,
}

/// Checks, and prints what was found.
pub fn run(options: &Coverage) -> Result<()> {
    let image = match &options.kernel {
        Some(image) => image.clone(),
        None => crate::build::kernel()?,
    };
    let forms = forms(&image)?;
    let mut by: BTreeMap<By, (usize, usize)> = BTreeMap::new();
    for form in forms.values() {
        let sums = by.entry(form.by).or_default();
        sums.0 += 1;
        sums.1 += form.count;
        if options.all || form.by == By::Nobody {
            println!(
                "{:<12} {:>7} × {:<44} in {}",
                name(form.by),
                form.count,
                form.example,
                places(form)
            );
        }
    }
    for (by, (forms, count)) in &by {
        let reason = match by {
            By::Unreached(reason) => format!(": {reason}"),
            _ => String::new(),
        };
        println!(
            "kernel-coverage: {:<10} {forms:>4} forms, {count:>7} instructions{reason}",
            name(*by)
        );
    }
    if let Some((forms, _)) = by.get(&By::Nobody) {
        bail!(
            "{forms} instruction forms that nobody executes on a host that emulates ring 0 (above)"
        );
    }
    Ok(())
}

fn name(by: By) -> &'static str {
    match by {
        By::Emulator => "emulator",
        By::Host => "host",
        By::Assist => "assist",
        By::Unreached(_) => "unreached",
        By::Nobody => "UNHANDLED",
    }
}

fn places(form: &Form) -> String {
    let mut names: Vec<&str> = form.places.iter().map(String::as_str).take(4).collect();
    if form.places.len() > names.len() {
        names.push("…");
    }
    names.join(", ")
}

/// Every form of an image.
fn forms(image: &Path) -> Result<BTreeMap<String, Form>> {
    let file = std::fs::read(image).with_context(|| image.display().to_string())?;
    let elf = Elf::parse(&file).with_context(|| image.display().to_string())?;
    let mut forms = BTreeMap::new();
    for section in elf.sections.iter().filter(|s| s.executable) {
        if section.name != REPLACEMENTS {
            sweep(&elf, section, &mut forms);
        }
    }
    replacements(&elf, &mut forms)?;
    Ok(forms)
}

/// Disassembles a section from its first byte, and anew from each symbol.
fn sweep(elf: &Elf, section: &Section, forms: &mut BTreeMap<String, Form>) {
    let end = section.address + section.bytes.len() as u64;
    let mut starts: Vec<u64> = elf
        .symbols
        .iter()
        .map(|symbol| symbol.address)
        .filter(|address| (section.address..end).contains(address))
        .collect();
    starts.insert(0, section.address);
    starts.dedup();
    starts.push(end);
    for range in starts.windows(2) {
        let (start, stop) = (range[0] - section.address, range[1] - section.address);
        let function = elf.symbol_at(range[0]);
        let bytes = &section.bytes[start as usize..stop as usize];
        disassemble(bytes, range[0], function, forms);
    }
}

const INT3: u8 = 0xcc;
const REPLACEMENTS: &str = ".altinstr_replacement";
/// `struct alt_instr` (arch/x86/include/asm/alternative.h): two self-relative offsets, a feature, two lengths.
const ALT_INSTR: usize = 12;

/// Disassembles the replacements that alternatives may patch in, each from its own start.
fn replacements(elf: &Elf, forms: &mut BTreeMap<String, Form>) -> Result<()> {
    let (Some(table), Some(code)) = (elf.section(".altinstructions"), elf.section(REPLACEMENTS))
    else {
        return Ok(());
    };
    for (index, entry) in table.bytes.chunks_exact(ALT_INSTR).enumerate() {
        let field = |at: usize| -> Result<u64> {
            let here = table.address + (index * ALT_INSTR + at) as u64;
            Ok(here.wrapping_add_signed(elf::u32_at(entry, at)?.cast_signed().into()))
        };
        let (patched, replacement) = (field(0)?, field(4)?);
        let len = usize::from(entry[11]);
        let start = replacement
            .checked_sub(code.address)
            .context("a replacement outside of its section")? as usize;
        let bytes = code
            .bytes
            .get(start..start + len)
            .context("a replacement outside of its section")?;
        let function = elf.symbol_at(patched);
        disassemble(bytes, replacement, function, forms);
    }
    Ok(())
}

fn disassemble(bytes: &[u8], address: u64, function: &str, forms: &mut BTreeMap<String, Form>) {
    // what fills the room up to the next function is never run
    let len = bytes.len() - bytes.iter().rev().take_while(|b| **b == INT3).count();
    let bytes = &bytes[..len];
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        let at = (instruction.ip() - address) as usize;
        // zeroes between functions
        if bytes[at..].iter().all(|byte| *byte == 0) {
            return;
        }
        let key = key(&instruction, &bytes[at..]);
        let form = forms.entry(key).or_insert_with(|| Form {
            by: By::Emulator,
            count: 0,
            example: text(&instruction, &bytes[at..]),
            places: BTreeSet::new(),
        });
        form.by = form.by.max(executor(&instruction, function));
        form.count += 1;
        form.places.insert(function.to_owned());
    }
}

fn key(instruction: &Instruction, bytes: &[u8]) -> String {
    if instruction.is_invalid() {
        return format!("invalid {:02x}", bytes[0]);
    }
    let operands: Vec<String> = (0..instruction.op_count())
        .map(|index| format!("{:?}", instruction.op_kind(index)))
        .collect();
    format!("{:?} {}", instruction.code(), operands.join(","))
}

fn text(instruction: &Instruction, bytes: &[u8]) -> String {
    if instruction.is_invalid() {
        return format!("cannot be decoded: {:02x?}", &bytes[..bytes.len().min(8)]);
    }
    let mut text = String::new();
    GasFormatter::new().format(instruction, &mut text);
    text
}

fn executor(instruction: &Instruction, function: &str) -> By {
    if Completion::of(instruction.mnemonic()).is_some() {
        By::Assist
    } else if emulator::executes(instruction) {
        By::Emulator
    } else if host::executes(instruction.mnemonic()) {
        By::Host
    } else if let Some(reason) = unreached::reason(instruction, function) {
        By::Unreached(reason)
    } else {
        By::Nobody
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn executor_of(bytes: &[u8]) -> By {
        let instruction = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
        executor(&instruction, "f")
    }

    #[test]
    fn forms_are_told_apart() {
        // add rax, [rdi]; lea; cmpxchg8b and cmpxchg16b; sgdt and swapgs; bsf and tzcnt; pxor
        assert_eq!(executor_of(&[0x48, 0x03, 0x07]), By::Emulator);
        assert_eq!(executor_of(&[0x48, 0x8d, 0x47, 0x08]), By::Emulator);
        assert_eq!(executor_of(&[0x0f, 0xc7, 0x0f]), By::Emulator);
        assert_eq!(executor_of(&[0x48, 0x0f, 0xc7, 0x0f]), By::Assist);
        assert_eq!(executor_of(&[0x0f, 0x01, 0x07]), By::Emulator);
        assert_eq!(executor_of(&[0x0f, 0x01, 0xf8]), By::Host);
        assert_eq!(executor_of(&[0x48, 0x0f, 0xbc, 0xc7]), By::Emulator);
        assert_eq!(executor_of(&[0x66, 0x0f, 0xef, 0xc0]), By::Nobody);
        assert_eq!(executor_of(&[0xc5, 0xf8, 0x77]), By::Nobody);
    }

    /// Without looking for its source elsewhere than here.
    fn built() -> Option<PathBuf> {
        if let Some(image) = std::env::var_os("CAISSON_GUEST_KERNEL") {
            return Some(image.into());
        }
        let target = crate::shell::target();
        let home = target.join("guest-kernel");
        if !home.exists() {
            return None;
        }
        let source = caisson_guest_kernel::Source::locate(&home).ok()?;
        let kernel = caisson_guest_kernel::find(&source, &target).ok()??;
        Some(kernel.image())
    }

    #[test]
    fn the_kernel_that_was_built_contains_nothing_unhandled() {
        let Some(image) = built() else {
            let reason = "the guest's kernel has not been built (cargo xtask kernel)";
            // past the capture of what passing tests print
            let _ = writeln!(std::io::stdout(), "skipped 1 × {reason}");
            return;
        };
        let forms = forms(&image).expect("an ELF image");
        let unhandled: Vec<&str> = forms
            .values()
            .filter(|form| form.by == By::Nobody)
            .map(|form| form.example.as_str())
            .collect();
        assert!(forms.len() > 500, "only {} forms", forms.len());
        assert_eq!(unhandled, [] as [&str; 0]);
    }
}
