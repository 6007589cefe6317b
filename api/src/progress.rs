//! What pull, push, load, import and build stream: one JSON object a line.

use serde::{Deserialize, Serialize};

use crate::json::is_default;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct JsonMessage {
    #[serde(skip_serializing_if = "is_default")]
    pub stream: String,
    #[serde(skip_serializing_if = "is_default")]
    pub status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress_detail: Option<ProgressDetail>,
    /// The bar, for clients that draw none themselves.
    #[serde(skip_serializing_if = "is_default")]
    pub progress: String,
    #[serde(skip_serializing_if = "is_default")]
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_detail: Option<ErrorDetail>,
    #[serde(skip_serializing_if = "is_default")]
    pub error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux: Option<serde_json::Value>,
}

/// Bytes so far, and in all; 0 when unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProgressDetail {
    #[serde(skip_serializing_if = "is_default")]
    pub current: i64,
    #[serde(skip_serializing_if = "is_default")]
    pub total: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorDetail {
    #[serde(skip_serializing_if = "is_default")]
    pub code: i64,
    pub message: String,
}

impl JsonMessage {
    /// A line of status.
    pub fn status(id: &str, status: &str) -> Self {
        JsonMessage {
            id: id.to_owned(),
            status: status.to_owned(),
            ..Default::default()
        }
    }

    /// A line of progress; draws the bar Docker draws.
    pub fn progress(id: &str, status: &str, current: i64, total: i64) -> Self {
        let detail = ProgressDetail { current, total };
        JsonMessage {
            id: id.to_owned(),
            status: status.to_owned(),
            progress: detail.bar(),
            progress_detail: Some(detail),
            ..Default::default()
        }
    }

    /// A line of text.
    pub fn stream(text: &str) -> Self {
        JsonMessage {
            stream: text.to_owned(),
            ..Default::default()
        }
    }

    /// The last line of a failed stream.
    pub fn error(message: &str) -> Self {
        JsonMessage {
            error: message.to_owned(),
            error_detail: Some(ErrorDetail {
                code: 0,
                message: message.to_owned(),
            }),
            ..Default::default()
        }
    }
}

impl ProgressDetail {
    /// `[=====>     ]  1.2MB/4.5MB`, 50 characters between the brackets.
    pub fn bar(&self) -> String {
        if self.current <= 0 && self.total <= 0 {
            return String::new();
        }
        let current = human_bytes(self.current);
        if self.total <= 0 || self.current > self.total {
            return format!("{current:>8}");
        }
        let percent = (self.current as f64 / self.total as f64 * 100.0) as usize / 2;
        let done = "=".repeat(percent);
        let todo = " ".repeat(50usize.saturating_sub(percent));
        let total = human_bytes(self.total);
        format!("[{done}>{todo}] {current:>8}/{total}")
    }
}

/// Four significant digits and decimal units: `1.234kB`.
fn human_bytes(bytes: i64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        v if v >= 1000.0 => 0,
        v if v >= 100.0 => 1,
        v if v >= 10.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_four_digits() {
        assert_eq!(human_bytes(0), "0B");
        assert_eq!(human_bytes(32), "32B");
        assert_eq!(human_bytes(1024), "1.024kB");
        assert_eq!(human_bytes(32_540), "32.54kB");
        assert_eq!(human_bytes(1_982_312), "1.982MB");
        assert_eq!(human_bytes(5_000_000), "5MB");
    }

    #[test]
    fn bars_are_fifty_wide() {
        let bar = ProgressDetail {
            current: 50,
            total: 100,
        }
        .bar();
        assert_eq!(
            bar,
            format!("[{}>{}]      50B/100B", "=".repeat(25), " ".repeat(25))
        );
        assert_eq!(
            ProgressDetail {
                current: 7,
                total: 0
            }
            .bar(),
            "      7B"
        );
        assert_eq!(ProgressDetail::default().bar(), "");
    }

    #[test]
    fn an_error_says_it_twice() {
        let line = serde_json::to_string(&JsonMessage::error("no")).expect("serialises");
        assert_eq!(line, r#"{"errorDetail":{"message":"no"},"error":"no"}"#);
    }
}
