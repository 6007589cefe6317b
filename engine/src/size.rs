//! Sizes as people write them in options and files.

/// Reads `64m`, `1g`, `512KiB` or plain bytes; units are powers of 1024.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let shift = match text[digits..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::parse_bytes;

    #[test]
    fn sizes_have_binary_units_and_do_not_overflow() {
        assert_eq!(parse_bytes("64m"), Some(64 << 20));
        assert_eq!(parse_bytes(" 1 GiB "), Some(1 << 30));
        assert_eq!(parse_bytes("12"), Some(12));
        for text in ["99999999999t", "m", "", "-1", "1.5g", "1x"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }
}
