//! `info`: the daemon about itself and its machine.

use std::rc::Rc;

use serde_json::{Value, json};

use crate::cli::command::{COMMAND, Command, Failure, Outcome};
use crate::cli::flags::{FORMAT_OBJECT, Flag, Kind, Parsed, flag};
use crate::cli::session::Session;
use crate::cli::template::Format;
use crate::cli::{output, units};

const FLAGS: &[Flag] = &[flag("f", "format", Kind::Text, FORMAT_OBJECT)];

/// `info`.
pub const COMMANDS: &[Command] = &[Command {
    paths: &["info", "system info"],
    usage: "[OPTIONS]",
    about: "Display system-wide information",
    examples: &["info", "info --format '{{.CgroupVersion}}'"],
    flags: &[FLAGS],
    run: |s, p| Box::pin(info(s, p)),
    ..COMMAND
}];

async fn info(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let server = match session.client() {
        Ok(client) => client.get_raw("/info").await.map_err(Failure::from),
        Err(failure) => Err(failure),
    };
    let client = json!({
        "Debug": session.global.flag("debug"),
        "Version": env!("CARGO_PKG_VERSION"),
        "Context": session.context_name(),
        "Plugins": [],
        "Warnings": null,
    });
    let format = parsed.text("format");
    if !format.is_empty() {
        let template =
            Format::parse(format, "").map_err(|e| format!("template parsing error: {e}"))?;
        let mut value = server
            .as_ref()
            .map_or_else(|f| json!({"ServerErrors": [f.message]}), Value::clone);
        if let Value::Object(map) = &mut value {
            map.insert("ClientInfo".to_owned(), client);
        }
        output::line(
            template
                .render(&template.data(&value))
                .map_err(Failure::new)?,
        )?;
        return server.map(|_| 0);
    }
    output::print(format!(
        "Client:\n Version:    {}\n Context:    {}\n Debug Mode: {}\n\nServer:\n",
        env!("CARGO_PKG_VERSION"),
        session.context_name(),
        session.global.flag("debug")
    ))?;
    match server {
        Ok(server) => {
            output::print(server_text(&server))?;
            for warning in list(&server, "Warnings") {
                output::complain(warning);
            }
            Ok(0)
        }
        Err(failure) => {
            output::complain(format!(
                "ERROR: {}\nerrors pretty printing info",
                failure.message
            ));
            Err(Failure::silent(1))
        }
    }
}

fn list(value: &Value, name: &str) -> Vec<String> {
    let items = value
        .get(name)
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    items
        .iter()
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect()
}

/// The server half, one fact a line.
fn server_text(v: &Value) -> String {
    let text = |name: &str| v.get(name).and_then(Value::as_str).unwrap_or("");
    let number = |name: &str| v.get(name).and_then(Value::as_i64).unwrap_or(0);
    let flag = |name: &str| v.get(name).and_then(Value::as_bool).unwrap_or(false);
    let mut out = String::new();
    let mut line = |indent: usize, label: &str, value: &str| {
        out.push_str(&format!("{:indent$}{label}: {value}\n", ""))
    };
    line(1, "Containers", &number("Containers").to_string());
    line(2, "Running", &number("ContainersRunning").to_string());
    line(2, "Paused", &number("ContainersPaused").to_string());
    line(2, "Stopped", &number("ContainersStopped").to_string());
    line(1, "Images", &number("Images").to_string());
    line(1, "Server Version", text("ServerVersion"));
    line(1, "Storage Driver", text("Driver"));
    for pair in v
        .get("DriverStatus")
        .and_then(Value::as_array)
        .unwrap_or(&Vec::new())
    {
        if let (Some(key), Some(value)) = (
            pair.get(0).and_then(Value::as_str),
            pair.get(1).and_then(Value::as_str),
        ) {
            line(2, key, value);
        }
    }
    line(1, "Logging Driver", text("LoggingDriver"));
    line(1, "Cgroup Driver", text("CgroupDriver"));
    line(1, "Cgroup Version", text("CgroupVersion"));
    out.push_str(" Plugins:\n");
    let plugins = v.get("Plugins").cloned().unwrap_or_default();
    for (label, name) in [
        ("Volume", "Volume"),
        ("Network", "Network"),
        ("Authorization", "Authorization"),
        ("Log", "Log"),
    ] {
        let found = list(&plugins, name);
        if !found.is_empty() {
            out.push_str(&format!("  {label}: {}\n", found.join(" ")));
        }
    }
    let mut line = |indent: usize, label: &str, value: &str| {
        out.push_str(&format!("{:indent$}{label}: {value}\n", ""))
    };
    let swarm = v
        .pointer("/Swarm/LocalNodeState")
        .and_then(Value::as_str)
        .unwrap_or("inactive");
    line(1, "Swarm", swarm);
    let mut runtimes: Vec<&str> = v
        .get("Runtimes")
        .and_then(Value::as_object)
        .map(|r| r.keys().map(String::as_str).collect())
        .unwrap_or_default();
    runtimes.sort_unstable();
    if !runtimes.is_empty() {
        line(1, "Runtimes", &runtimes.join(" "));
        line(1, "Default Runtime", text("DefaultRuntime"));
    }
    if !text("Isolation").is_empty() {
        line(1, "Default Isolation", text("Isolation"));
    }
    line(1, "Init Binary", text("InitBinary"));
    for (label, pointer) in [
        ("containerd", "/ContainerdCommit/ID"),
        ("runc", "/RuncCommit/ID"),
        ("init", "/InitCommit/ID"),
    ] {
        if let Some(id) = v.pointer(pointer).and_then(Value::as_str) {
            line(1, &format!("{label} version"), id);
        }
    }
    let security = list(v, "SecurityOptions");
    if !security.is_empty() {
        out.push_str(" Security Options:\n");
        for option in security {
            let pairs: Vec<(&str, &str)> = option
                .split(',')
                .filter_map(|kv| kv.split_once('='))
                .collect();
            for (key, value) in pairs {
                if key == "name" {
                    out.push_str(&format!("  {value}\n"));
                } else {
                    let title = key[..1].to_uppercase() + &key[1..];
                    out.push_str(&format!("   {title}: {value}\n"));
                }
            }
        }
    }
    let mut line = |indent: usize, label: &str, value: &str| {
        out.push_str(&format!("{:indent$}{label}: {value}\n", ""))
    };
    line(1, "Kernel Version", text("KernelVersion"));
    line(1, "Operating System", text("OperatingSystem"));
    line(1, "OSType", text("OSType"));
    line(1, "Architecture", text("Architecture"));
    line(1, "CPUs", &number("NCPU").to_string());
    line(
        1,
        "Total Memory",
        &units::bytes_size(number("MemTotal") as f64),
    );
    line(1, "Name", text("Name"));
    line(1, "ID", text("ID"));
    line(1, "Docker Root Dir", text("DockerRootDir"));
    line(1, "Debug Mode", &flag("Debug").to_string());
    for (label, name) in [
        ("HTTP Proxy", "HttpProxy"),
        ("HTTPS Proxy", "HttpsProxy"),
        ("No Proxy", "NoProxy"),
    ] {
        if !text(name).is_empty() {
            line(1, label, text(name));
        }
    }
    let labels = list(v, "Labels");
    if !labels.is_empty() {
        out.push_str(&format!(" Labels:\n  {}\n", labels.join("\n  ")));
    }
    out.push_str(&format!(" Experimental: {}\n", flag("ExperimentalBuild")));
    if let Some(registry) = v.get("RegistryConfig") {
        let mut insecure: Vec<String> = registry
            .get("IndexConfigs")
            .and_then(Value::as_object)
            .map(|i| {
                i.iter()
                    .filter(|(_, c)| c.get("Secure") == Some(&json!(false)))
                    .map(|(n, _)| n.clone())
                    .collect()
            })
            .unwrap_or_default();
        insecure.extend(list(registry, "InsecureRegistryCIDRs"));
        if !insecure.is_empty() {
            out.push_str(&format!(
                " Insecure Registries:\n  {}\n",
                insecure.join("\n  ")
            ));
        }
        let mirrors = list(registry, "Mirrors");
        if !mirrors.is_empty() {
            out.push_str(&format!(" Registry Mirrors:\n  {}\n", mirrors.join("\n  ")));
        }
    }
    out.push_str(&format!(
        " Live Restore Enabled: {}\n\n",
        flag("LiveRestoreEnabled")
    ));
    out
}
