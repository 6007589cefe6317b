//! doctor: whether this machine can run containers and microVMs; each check says what it found, why it matters and what to do.
//!
//! A check is a function from [`Machine`] to a [`Finding`]; `Machine` only reads. Nothing here changes the system: what is tried
//! (a user namespace) is tried in ways that leave no trace.

mod checks;
mod machine;

use std::path::Path;

use serde::Serialize;

pub use machine::Machine;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Something will be missing or slower.
    Warning,
    /// Containers will not run.
    Failure,
    /// VMs are impossible here; containers are not concerned.
    Unavailable,
}

/// One check's result.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was checked, in two or three words.
    pub check: &'static str,
    /// The verdict.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// Why it matters.
    pub why: &'static str,
    /// The command or change that fixes it; empty when nothing is wrong.
    pub fix: String,
}

/// Runs every check.
pub fn examine(data_root: &Path, socket: Option<&Path>) -> Vec<Finding> {
    let machine = Machine::read(data_root, socket);
    checks::ALL.iter().map(|check| check(&machine)).collect()
}

/// For people.
pub fn as_text(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Ok => "ok     ",
            Verdict::Warning => "warning",
            Verdict::Failure => "FAILURE",
            Verdict::Unavailable => "no vm  ",
        };
        out.push_str(&format!("[{mark}] {}: {}\n", finding.check, finding.found));
        if finding.verdict != Verdict::Ok {
            out.push_str(&format!(
                "          why: {}\n          fix: {}\n",
                finding.why,
                finding.fix.replace('\n', "\n               ")
            ));
        }
    }
    let count = |v: Verdict| findings.iter().filter(|f| f.verdict == v).count();
    let (failures, warnings, no_vm) = (
        count(Verdict::Failure),
        count(Verdict::Warning),
        count(Verdict::Unavailable),
    );
    out.push_str(&match failures {
        0 => format!("\nContainers can run here. {warnings} warning(s).\n"),
        n => format!("\nContainers cannot run here: {n} failure(s), {warnings} warning(s).\n"),
    });
    if no_vm > 0 {
        out.push_str("MicroVMs (--isolation=vm) cannot run here.\n");
    }
    out
}

/// For programs.
pub fn as_json(findings: &[Finding]) -> String {
    let value = serde_json::json!({"containers": exit_code(findings) == 0, "findings": findings});
    format!(
        "{}\n",
        serde_json::to_string_pretty(&value).expect("findings are plain data")
    )
}

/// 1 when something stops containers.
pub fn exit_code(findings: &[Finding]) -> u8 {
    u8::from(findings.iter().any(|f| f.verdict == Verdict::Failure))
}
