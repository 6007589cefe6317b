//! tables as Docker prints them: Go's text/tabwriter for one block of lines, and the formatter that chooses table, raw or template.

use std::collections::BTreeMap;

use super::template::Format;

/// Aligns tab-separated lines; cells are padded to at least `minimum` columns, three spaces apart.
pub fn align(text: &str, minimum: usize) -> String {
    let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split('\t').collect()).collect();
    let mut widths: Vec<Vec<usize>> = lines.iter().map(|l| vec![0; l.len()]).collect();
    // A column block is a run of lines that all have a terminated cell in that column.
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    for column in 0..columns.saturating_sub(1) {
        let mut start = 0;
        while start < lines.len() {
            if lines[start].len() <= column + 1 {
                start += 1;
                continue;
            }
            let end = (start..lines.len())
                .find(|i| lines[*i].len() <= column + 1)
                .unwrap_or(lines.len());
            let widest = lines[start..end]
                .iter()
                .map(|l| l[column].chars().count() + 3)
                .max()
                .unwrap_or(0);
            for row in &mut widths[start..end] {
                row[column] = widest.max(minimum);
            }
            start = end;
        }
    }
    let mut out = String::new();
    for (cells, widths) in lines.iter().zip(&widths) {
        for (i, cell) in cells.iter().enumerate() {
            out.push_str(cell);
            if i + 1 < cells.len() {
                out.extend(std::iter::repeat_n(
                    ' ',
                    widths[i].saturating_sub(cell.chars().count()),
                ));
            }
        }
        out.push('\n');
    }
    out
}

/// One row: its fields, and the labels `{{.Label "x"}}` finds.
pub struct Row {
    /// Field name and text; the names are those templates use.
    pub fields: Vec<(&'static str, String)>,
    /// Labels, if the object has any.
    pub labels: Option<BTreeMap<String, String>>,
}

/// How rows of one kind are shown.
pub struct Layout {
    /// The Go type named in errors.
    pub type_name: &'static str,
    /// The template of the default table, without the word `table`.
    pub table: String,
    /// What `-q` shows.
    pub quiet: &'static str,
    /// Field name and column header.
    pub headers: &'static [(&'static str, &'static str)],
    /// Lines of the `raw` format, if Docker has one.
    pub raw: &'static str,
}

impl Layout {
    /// Renders rows by the user's format (empty: the default).
    pub fn render(&self, format: &str, quiet: bool, rows: &[Row]) -> Result<String, String> {
        let (source, table) = match format {
            "" | "table" if quiet => (self.quiet.to_owned(), false),
            "raw" if quiet && !self.raw.is_empty() => (self.quiet.to_owned(), false),
            "" | "table" => (self.table.clone(), true),
            "raw" if !self.raw.is_empty() => (self.raw.to_owned(), false),
            "json" => ("{{json .}}".to_owned(), false),
            other => match other
                .strip_prefix("table ")
                .or_else(|| other.strip_prefix("table"))
            {
                Some(rest) => (rest.trim().to_owned(), true),
                None => (other.to_owned(), false),
            },
        };
        let source = source.replace("\\t", "\t").replace("\\n", "\n");
        let format = Format::parse(&source, self.type_name)
            .map_err(|e| format!("template parsing error: {e}"))?;
        let failed = |e: String| format!("template parsing error: {e}");
        let mut text = String::new();
        if table {
            let headers: Vec<(&str, String)> = self
                .headers
                .iter()
                .map(|(k, v)| (*k, (*v).to_owned()))
                .collect();
            text.push_str(&format.render(&format.header(&headers)).map_err(failed)?);
            text.push('\n');
        }
        for row in rows {
            let data = format.row(&row.fields, row.labels.as_ref());
            text.push_str(&format.render(&data).map_err(failed)?);
            text.push('\n');
        }
        Ok(if table { align(&text, 10) } else { text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_like_go_tabwriter() {
        assert_eq!(
            align("A\tB\nlonger than ten\tx\n", 10),
            "A                 B\nlonger than ten   x\n"
        );
        assert_eq!(
            align("A\tB\tC\n1\t\t3\n", 10),
            "A         B         C\n1                   3\n"
        );
        assert_eq!(align("no tabs\n", 10), "no tabs\n");
    }

    #[test]
    fn a_layout_chooses_by_format() {
        let layout = Layout {
            type_name: "*T",
            table: "{{.ID}}\t{{.Name}}".into(),
            quiet: "{{.ID}}",
            headers: &[("ID", "ID"), ("Name", "NAME")],
            raw: "",
        };
        let rows = [Row {
            fields: vec![("ID", "1".into()), ("Name", "x".into())],
            labels: None,
        }];
        assert_eq!(
            layout.render("", false, &rows).as_deref(),
            Ok("ID        NAME\n1         x\n")
        );
        assert_eq!(layout.render("", true, &rows).as_deref(), Ok("1\n"));
        assert_eq!(
            layout.render("table {{.Name}}", false, &rows).as_deref(),
            Ok("NAME\nx\n")
        );
        assert_eq!(
            layout.render("{{.Name}}\\t!", false, &rows).as_deref(),
            Ok("x\t!\n")
        );
        assert_eq!(
            layout.render("json", false, &rows).as_deref(),
            Ok("{\"ID\":\"1\",\"Name\":\"x\"}\n")
        );
        assert!(
            layout
                .render("{{.No}}", false, &rows)
                .expect_err("no field")
                .contains("can't evaluate field No in type *T")
        );
    }
}
