//! help texts, in Docker's layout, made from the command and flag tables. Pure: returns text.

use super::command::{Command, GROUPS, Group, all};
use super::flags::Flag;

/// Commands shown first.
const COMMON: &[&str] = &[
    "run", "exec", "ps", "pull", "push", "images", "login", "logout", "search", "version", "info",
];

/// `-f, --filter filter   Text`, one flag a line (more when its text has more), columns aligned.
pub fn flag_lines(tables: &[&'static [Flag]], width: usize) -> String {
    let mut flags: Vec<&Flag> = tables
        .iter()
        .flat_map(|t| t.iter())
        .filter(|f| !f.help.is_empty())
        .collect();
    flags.sort_by_key(|f| f.long);
    let heads: Vec<String> = flags
        .iter()
        .map(|f| {
            let short = if f.short.is_empty() {
                "      ".to_owned()
            } else {
                format!("  -{}, ", f.short)
            };
            let kind = f.kind.type_name();
            format!(
                "{short}--{}{}{kind}",
                f.long,
                if kind.is_empty() { "" } else { " " }
            )
        })
        .collect();
    let column = heads.iter().map(String::len).max().unwrap_or(0) + 3;
    let mut text = String::new();
    for (flag, head) in flags.iter().zip(&heads) {
        let mut first = true;
        for line in flag
            .help
            .lines()
            .flat_map(|l| wrap(l, width.saturating_sub(column).max(24)))
        {
            if first {
                text.push_str(&format!("{head:column$}{line}\n"));
                first = false;
            } else {
                text.push_str(&format!("{:column$}{line}\n", ""));
            }
        }
    }
    text
}

fn wrap(line: &str, width: usize) -> Vec<String> {
    let indent = line.len() - line.trim_start().len();
    if line.chars().count() <= width {
        return vec![line.to_owned()];
    }
    let mut lines = Vec::new();
    let mut current = " ".repeat(indent);
    for word in line.trim_start().split(' ') {
        let empty = current.trim().is_empty();
        if !empty && current.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::take(&mut current));
            current = word.to_owned();
        } else {
            if !empty {
                current.push(' ');
            }
            current.push_str(word);
        }
    }
    lines.push(current);
    lines
}

/// `Usage:  caisson run [OPTIONS] IMAGE …`
pub fn usage_line(command: &Command, path: &str) -> String {
    let mut forms = command.usage.lines();
    let mut text = format!("Usage:  caisson {path} {}", forms.next().unwrap_or(""))
        .trim_end()
        .to_owned();
    for form in forms {
        text.push_str(&format!("\n\tcaisson {path} {form}"));
    }
    text
}

/// One command's help.
pub fn command_help(command: &Command, path: &str, width: usize) -> String {
    let mut text = format!("{}\n\n{}\n", usage_line(command, path), command.about);
    if !command.details.is_empty() {
        text.push_str(&format!("\n{}\n", command.details));
    }
    if command.paths.len() > 1 {
        let names: Vec<String> = command
            .paths
            .iter()
            .map(|p| format!("caisson {p}"))
            .collect();
        text.push_str(&format!("\nAliases:\n  {}\n", names.join(", ")));
    }
    let flags = flag_lines(command.flags, width);
    if !flags.is_empty() {
        text.push_str(&format!("\nOptions:\n{flags}"));
    }
    if !command.examples.is_empty() {
        text.push_str("\nExamples:\n");
        for example in command.examples {
            text.push_str(&format!("  caisson {example}\n"));
        }
    }
    text
}

fn listing(rows: &[(&str, &str)]) -> String {
    let column = rows
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or(0)
        .max(10);
    rows.iter()
        .map(|(name, about)| format!("  {name:column$}  {about}\n"))
        .collect()
}

/// A group's help: its commands.
pub fn group_help(group: &Group) -> String {
    let prefix = format!("{} ", group.name);
    let mut rows: Vec<(&str, &str)> = all()
        .flat_map(|c| c.paths.iter().map(move |p| (*p, c.about)))
        .filter_map(|(path, about)| path.strip_prefix(prefix.as_str()).map(|name| (name, about)))
        .collect();
    rows.sort_unstable();
    format!(
        "Usage:  caisson {0} COMMAND\n\n{1}\n\nCommands:\n{2}\nRun 'caisson {0} COMMAND --help' for more information on a command.\n",
        group.name,
        group.about,
        listing(&rows)
    )
}

/// The program's help.
pub fn program_help(global: &'static [Flag], width: usize) -> String {
    let top = |name: &str| all().find(|c| c.paths.contains(&name));
    let common: Vec<(&str, &str)> = COMMON
        .iter()
        .filter_map(|n| top(n).map(|c| (*n, c.about)))
        .collect();
    let groups: Vec<(&str, &str)> = GROUPS.iter().map(|g| (g.name, g.about)).collect();
    let mut rest: Vec<(&str, &str)> = all()
        .flat_map(|c| c.paths.iter().map(move |p| (*p, c.about)))
        .filter(|(path, _)| !path.contains(' ') && !COMMON.contains(path))
        .collect();
    rest.sort_unstable();
    format!(
        "Usage:  caisson [OPTIONS] COMMAND\n\nContainers and microVMs from the same images, behind Docker's commands\n\nCommon Commands:\n{}\nManagement Commands:\n{}\nCommands:\n{}\nGlobal Options:\n{}\nRun 'caisson COMMAND --help' for more information on a command.\n",
        listing(&common),
        listing(&groups),
        listing(&rest),
        flag_lines(&[global], width)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_can_be_found_once_and_shows_help() {
        let mut seen = std::collections::HashSet::new();
        for command in all() {
            assert!(!command.about.is_empty());
            for path in command.paths.iter().chain(command.hidden_paths) {
                assert!(seen.insert(*path), "{path} is two commands");
                assert!(command_help(command, path, 80).contains("Usage:  caisson "));
            }
            let mut letters = std::collections::HashSet::new();
            for flag in command.flags.iter().flat_map(|t| t.iter()) {
                assert!(
                    letters.insert(flag.long),
                    "{}: --{} twice",
                    command.paths[0],
                    flag.long
                );
                assert!(
                    flag.short.is_empty() || letters.insert(flag.short),
                    "{}: -{} twice",
                    command.paths[0],
                    flag.short
                );
            }
        }
    }

    #[test]
    fn long_texts_wrap_at_the_given_width() {
        assert!(wrap("one two three four", 9).iter().all(|l| l.len() <= 9));
        assert_eq!(wrap("short", 24), ["short"]);
    }
}
