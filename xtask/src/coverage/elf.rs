//! The parts of an ELF file that disassembly needs: sections and function symbols (System V ABI, chapters 4 and 5).

use anyhow::{Context, Result, ensure};

const SHT_SYMTAB: u32 = 2;
const SHT_NOBITS: u32 = 8;
const SHF_EXECINSTR: u64 = 4;
const SECTION_HEADER: usize = 64;
const SYMBOL: usize = 24;

/// A section with its bytes.
pub struct Section<'a> {
    pub name: &'a str,
    pub address: u64,
    pub executable: bool,
    pub bytes: &'a [u8],
}

/// A symbol that stands for an address in the image.
pub struct Symbol<'a> {
    pub name: &'a str,
    pub address: u64,
}

/// A 64-bit little-endian ELF file.
pub struct Elf<'a> {
    pub sections: Vec<Section<'a>>,
    /// By address.
    pub symbols: Vec<Symbol<'a>>,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    bytes
        .get(at..at + N)
        .and_then(|slice| slice.try_into().ok())
        .context("the ELF file is cut off")
}

fn u16_at(bytes: &[u8], at: usize) -> Result<usize> {
    Ok(u16::from_le_bytes(number(bytes, at)?).into())
}

/// The 32-bit number at `at`.
pub fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(number(bytes, at)?))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    Ok(u64::from_le_bytes(number(bytes, at)?))
}

fn text(table: &[u8], at: usize) -> Result<&str> {
    let rest = table.get(at..).context("a name outside of its table")?;
    let end = rest.iter().position(|b| *b == 0).unwrap_or(rest.len());
    Ok(std::str::from_utf8(&rest[..end])?)
}

impl<'a> Elf<'a> {
    /// Reads the section headers and the symbol table.
    pub fn parse(file: &'a [u8]) -> Result<Self> {
        ensure!(
            file.starts_with(b"\x7fELF\x02\x01"),
            "not a 64-bit ELF file"
        );
        let (headers, count) = (u64_at(file, 0x28)? as usize, u16_at(file, 0x3c)?);
        let header = |index: usize| headers + index * SECTION_HEADER;
        let contents = |index: usize| -> Result<&'a [u8]> {
            let at = header(index);
            if u32_at(file, at + 4)? == SHT_NOBITS {
                return Ok(&[]);
            }
            let (start, size) = (u64_at(file, at + 24)? as usize, u64_at(file, at + 32)?);
            file.get(start..start + size as usize)
                .context("a section outside of the ELF file")
        };
        let names = contents(u16_at(file, 0x3e)?)?;
        let mut sections = Vec::new();
        let mut symbols = Vec::new();
        for index in 0..count {
            let at = header(index);
            sections.push(Section {
                name: text(names, u32_at(file, at)? as usize)?,
                address: u64_at(file, at + 16)?,
                executable: u64_at(file, at + 8)? & SHF_EXECINSTR != 0,
                bytes: contents(index)?,
            });
            if u32_at(file, at + 4)? == SHT_SYMTAB {
                let strings = contents(u32_at(file, at + 40)? as usize)?;
                for symbol in contents(index)?.chunks_exact(SYMBOL) {
                    // a function, or a label in assembly
                    if matches!(symbol[4] & 0xf, 0 | 2) && u16_at(symbol, 6)? != 0 {
                        symbols.push(Symbol {
                            name: text(strings, u32_at(symbol, 0)? as usize)?,
                            address: u64_at(symbol, 8)?,
                        });
                    }
                }
            }
        }
        symbols.sort_by_key(|symbol| symbol.address);
        Ok(Elf { sections, symbols })
    }

    /// The section of that name.
    pub fn section(&self, name: &str) -> Option<&Section<'a>> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// The symbol at or before an address.
    pub fn symbol_at(&self, address: u64) -> &'a str {
        let after = self.symbols.partition_point(|s| s.address <= address);
        after
            .checked_sub(1)
            .map_or("?", |index| self.symbols[index].name)
    }
}
