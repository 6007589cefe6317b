//! Where the last n lines of a file begin, found from its end.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

const BLOCK_BYTES: u64 = 64 << 10;

/// Offset of the first of the last `lines` complete lines before `end`, and how many there are (fewer when the file is short).
/// A line counts when `wanted` accepts it.
pub(crate) fn start_of(
    file: &File,
    end: u64,
    lines: u64,
    wanted: impl Fn(&[u8]) -> bool,
) -> std::io::Result<(u64, u64)> {
    if lines == 0 {
        return Ok((end, 0));
    }
    let mut found = 0;
    let mut at = end;
    // The beginning of a line whose start is not read yet.
    let mut rest: Vec<u8> = Vec::new();
    while at > 0 {
        let size = BLOCK_BYTES.min(at);
        let from = at - size;
        let mut block = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut block, from)?;
        block.extend_from_slice(&rest);
        let mut line_end = block.len();
        for newline in (0..line_end)
            .rev()
            .filter(|i| block[*i] == b'\n')
            .collect::<Vec<_>>()
        {
            if newline + 1 < line_end && wanted(&block[newline + 1..line_end]) {
                found += 1;
                if found == lines {
                    return Ok((from + newline as u64 + 1, found));
                }
            }
            line_end = newline + 1;
        }
        block.truncate(line_end);
        rest = block;
        at = from;
    }
    if !rest.is_empty() && wanted(&rest) {
        found += 1;
    }
    Ok((0, found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn last(text: &[u8], lines: u64) -> (String, u64) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        let (from, found) = start_of(&file, text.len() as u64, lines, |_| true).unwrap();
        (
            String::from_utf8(text[usize::try_from(from).unwrap()..].to_vec()).unwrap(),
            found,
        )
    }

    #[test]
    fn small_files() {
        assert_eq!(last(b"a\nb\nc\n", 2), ("b\nc\n".into(), 2));
        assert_eq!(last(b"a\nb\nc\n", 3), ("a\nb\nc\n".into(), 3));
        assert_eq!(last(b"a\nb\nc\n", 9), ("a\nb\nc\n".into(), 3));
        assert_eq!(last(b"", 9), (String::new(), 0));
        assert_eq!(last(b"a\n", 0), (String::new(), 0));
    }

    #[test]
    fn lines_across_blocks() {
        let long = vec![b'x'; 200_000];
        let mut text = b"first\n".to_vec();
        text.extend_from_slice(&long);
        text.extend_from_slice(b"\nlast\n");
        assert_eq!(last(&text, 1).0, "last\n");
        assert_eq!(last(&text, 2).0.len(), 200_001 + 5);
        assert_eq!(last(&text, 3).0.len(), text.len());
    }

    #[test]
    fn only_wanted_lines_count() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"a1\nb1\na2\nb2\nb3\n").unwrap();
        assert_eq!(start_of(&file, 15, 2, |l| l[0] == b'a').unwrap(), (0, 2));
        assert_eq!(start_of(&file, 15, 1, |l| l[0] == b'a').unwrap(), (6, 1));
    }
}
