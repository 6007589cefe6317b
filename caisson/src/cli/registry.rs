//! `login`, `logout` and `search`.

use std::io::Read;
use std::rc::Rc;

use caisson_api::{AuthResponse, ImageSearchItem};

use super::command::{COMMAND, Command, Failure, Operands, Outcome};
use super::config::{Credentials, HUB, auth_config};
use super::container::ps::ellipsis;
use super::flags::{Flag, Kind, Parsed, filter, flag};
use super::output;
use super::prompt;
use super::session::Session;
use super::table::{Layout, Row};
use super::terminal;
use crate::client;

const LOGIN: &[Flag] = &[
    flag(
        "p",
        "password",
        Kind::Text,
        "Password or Personal Access Token (PAT)",
    ),
    flag(
        "",
        "password-stdin",
        Kind::Bool,
        "Take the Password or Personal Access Token (PAT) from stdin",
    ),
    flag("u", "username", Kind::Text, "Username"),
];
const SEARCH: &[Flag] = &[
    flag(
        "f",
        "filter",
        Kind::List("filter", filter),
        "Filter output based on conditions provided",
    ),
    flag(
        "",
        "format",
        Kind::Text,
        "Pretty-print search using a Go template",
    ),
    flag("", "limit", Kind::Int, "Max number of search results"),
    flag("", "no-trunc", Kind::Bool, "Don't truncate output"),
];

/// These commands.
pub const COMMANDS: &[Command] = &[
    Command {
        paths: &["login"],
        usage: "[OPTIONS] [SERVER]",
        about: "Authenticate to a registry",
        details: "Defaults to Docker Hub if no server is specified.",
        examples: &[
            "login -u me registry.example:5000",
            "login -u me --password-stdin < token",
        ],
        flags: &[LOGIN],
        operands: Operands::Between(0, 1),
        run: |s, p| Box::pin(login(s, p)),
        ..COMMAND
    },
    Command {
        paths: &["logout"],
        usage: "[SERVER]",
        about: "Log out from a registry",
        details: "If no server is specified, the default is defined by the daemon.",
        examples: &["logout registry.example:5000"],
        operands: Operands::Between(0, 1),
        run: |s, p| Box::pin(logout(s, p)),
        ..COMMAND
    },
    Command {
        paths: &["search"],
        usage: "[OPTIONS] TERM",
        about: "Search Docker Hub for images",
        examples: &["search --limit 5 nginx"],
        flags: &[SEARCH],
        operands: Operands::Exactly(1),
        run: |s, p| Box::pin(search(s, p)),
        ..COMMAND
    },
];

/// The registry as credential stores call it.
fn server_address(typed: Option<&String>) -> String {
    let text = typed.map(|t| t.trim()).unwrap_or("");
    let bare = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .unwrap_or(text);
    let host = bare.split('/').next().unwrap_or(bare);
    match host {
        "" | "docker.io" | "index.docker.io" | "registry-1.docker.io" => HUB.to_owned(),
        _ => host.to_owned(),
    }
}

async fn login(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let registry = server_address(parsed.operands.first());
    let mut username = parsed.text("username").to_owned();
    let mut secret = parsed.text("password").to_owned();
    if parsed.given("password") {
        output::complain(
            "WARNING! Using --password via the CLI is insecure. Use --password-stdin.",
        );
        if parsed.flag("password-stdin") {
            return Err("--password and --password-stdin are mutually exclusive".into());
        }
    }
    if parsed.flag("password-stdin") {
        if username.is_empty() {
            return Err("the --password-stdin option requires --username to be set".into());
        }
        std::io::stdin().lock().read_to_string(&mut secret)?;
        secret = secret
            .trim_end_matches('\n')
            .trim_end_matches('\r')
            .to_owned();
    }
    if username.is_empty() && secret.is_empty() {
        // Credentials that are already there are tried first.
        if let Some(known) = session.config.credentials(&registry)? {
            output::complain(format!(
                "Authenticating with existing credentials... [Username: {}]",
                known.username
            ));
            output::complain(
                "\n Info -> To login with a different account, run 'caisson logout' followed by 'caisson login'\n",
            );
            match authenticate(&session, &registry, &known).await {
                Ok(answer) if answer.identity_token.is_empty() => {
                    output::print(succeeded(&answer))?;
                    return Ok(0);
                }
                Ok(answer) => return finish(&session, &registry, known, &answer),
                Err(failure) => {
                    output::complain(format!("Login did not succeed, error: {}", failure.message))
                }
            }
        }
    }
    if username.is_empty() || secret.is_empty() {
        if !terminal::stdin_is_terminal() {
            return Err("Error: Cannot perform an interactive login from a non TTY device".into());
        }
        if username.is_empty() {
            username = prompt::ask("Username: ", false)?;
        }
        if username.is_empty() {
            return Err("Error: Non-null Username Required".into());
        }
        if secret.is_empty() {
            secret = prompt::ask("Password: ", true)?;
        }
        if secret.is_empty() {
            return Err("Error: Password Required".into());
        }
    }
    let credentials = Credentials { username, secret };
    let answer = authenticate(&session, &registry, &credentials).await?;
    finish(&session, &registry, credentials, &answer)
}

async fn authenticate(
    session: &Session,
    registry: &str,
    credentials: &Credentials,
) -> Result<AuthResponse, Failure> {
    Ok(session
        .client()?
        .post("/auth", Some(&auth_config(registry, credentials)))
        .await?)
}

fn finish(
    session: &Session,
    registry: &str,
    mut credentials: Credentials,
    answer: &AuthResponse,
) -> Outcome {
    if !answer.identity_token.is_empty() {
        credentials = Credentials {
            username: "<token>".to_owned(),
            secret: answer.identity_token.clone(),
        };
    }
    let in_helper = session
        .config
        .store_credentials(registry, &credentials)
        .map_err(|e| format!("Error saving credentials: {e}"))?;
    if !in_helper {
        let file = session.config.directory().join("config.json");
        output::complain(format!(
            "\nWARNING! Your credentials are stored unencrypted in '{}'.\nConfigure a credential helper to remove this warning. See\nhttps://docs.docker.com/go/credential-store/",
            file.display()
        ));
    }
    output::print(succeeded(answer))?;
    Ok(0)
}

/// The daemon's word for it, set off from what came before.
fn succeeded(answer: &AuthResponse) -> String {
    if answer.status.is_empty() {
        String::new()
    } else {
        format!("\n{}\n", answer.status)
    }
}

async fn logout(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let registry = server_address(parsed.operands.first());
    let shown = parsed
        .operands
        .first()
        .cloned()
        .unwrap_or_else(|| registry.clone());
    output::line(format!(
        "Removing login credentials for {}",
        if registry == HUB { &registry } else { &shown }
    ))?;
    session
        .config
        .erase_credentials(&registry)
        .map_err(|e| format!("WARNING: could not erase credentials:\n{shown}: {e}"))?;
    Ok(0)
}

async fn search(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let term = &parsed.operands[0];
    let client = session.client()?;
    let auth = session.config.registry_auth_header(term)?;
    let mut target = client::target("/images/search")
        .with("term", term)
        .with_filters(parsed.list("filter"));
    if let Some(limit) = parsed.int("limit") {
        target = target.with("limit", limit.to_string());
    }
    let response = client
        .send_with::<serde_json::Value>(
            http::Method::GET,
            target,
            None,
            &[("X-Registry-Auth", auth.as_str())],
        )
        .await?;
    let value = client::JsonStream::new(response)
        .next()
        .await?
        .unwrap_or_default();
    let items: Vec<ImageSearchItem> =
        caisson_api::from_value(value).map_err(|e| Failure::new(e.to_string()))?;
    let truncate = !parsed.flag("no-trunc");
    let ok = |yes: bool| {
        if yes {
            "[OK]".to_owned()
        } else {
            String::new()
        }
    };
    let rows: Vec<Row> = items
        .iter()
        .map(|i| {
            let description = i.description.replace(['\n', '\r'], " ");
            Row {
                fields: vec![
                    ("Name", i.name.clone()),
                    (
                        "Description",
                        if truncate {
                            ellipsis(&description, 45)
                        } else {
                            description
                        },
                    ),
                    ("StarCount", i.star_count.to_string()),
                    ("IsOfficial", ok(i.is_official)),
                    ("IsAutomated", ok(i.is_automated)),
                ],
                labels: None,
            }
        })
        .collect();
    let layout = Layout {
        type_name: "*registry.searchContext",
        table: "{{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}".to_owned(),
        quiet: "",
        headers: &[
            ("Name", "NAME"),
            ("Description", "DESCRIPTION"),
            ("StarCount", "STARS"),
            ("IsOfficial", "OFFICIAL"),
            ("IsAutomated", "AUTOMATED"),
        ],
        raw: "",
    };
    output::print(
        layout
            .render(parsed.text("format"), false, &rows)
            .map_err(Failure::new)?,
    )?;
    Ok(0)
}
