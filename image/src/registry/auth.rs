//! Answering a registry's challenge: passwords, tokens, and where they may be sent.

use std::collections::HashMap;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use super::{Access, Registry, body, expect, transport};
use crate::error::{Error, Result};

const MAX_TOKEN_BYTES: usize = 1 << 20;

/// What a registry is told about who asks.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing.
    #[default]
    Anonymous,
    /// A user's name and password.
    Basic {
        /// Name.
        username: String,
        /// Password.
        password: String,
    },
    /// A refresh token, as `docker login` gets from some registries.
    IdentityToken(String),
    /// A bearer token for the registry itself.
    RegistryToken(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Credentials::Anonymous => "Anonymous",
            Credentials::Basic { .. } => "Basic(redacted)",
            Credentials::IdentityToken(_) => "IdentityToken(redacted)",
            Credentials::RegistryToken(_) => "RegistryToken(redacted)",
        })
    }
}

impl Registry {
    /// The `Authorization` that answers a challenge; `None` when there is nothing to answer with.
    pub(super) async fn authorize(&self, challenges: &[Challenge]) -> Result<Option<String>> {
        if let Credentials::RegistryToken(token) = &self.credentials {
            return Ok(Some(format!("Bearer {token}")));
        }
        for challenge in challenges {
            match (challenge.scheme.as_str(), &self.credentials) {
                ("bearer", _) => {
                    return self
                        .token(challenge)
                        .await
                        .map(|t| Some(format!("Bearer {t}")));
                }
                ("basic", Credentials::Basic { username, password }) => {
                    return Ok(Some(basic(username, password)));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    async fn token(&self, challenge: &Challenge) -> Result<String> {
        let realm = challenge
            .parameters
            .get("realm")
            .map(String::as_str)
            .unwrap_or_default();
        let mut realm = Url::parse(realm).map_err(|_| {
            Error::Registry(format!(
                "the registry names an invalid authentication realm {realm:?}"
            ))
        })?;
        let secret = self.credentials != Credentials::Anonymous;
        if secret && self.base.scheme() == "https" && realm.scheme() != "https" {
            return Err(Error::Unauthorized(format!(
                "refusing to send credentials to {realm} without TLS: the registry itself uses TLS"
            )));
        }
        let service = challenge
            .parameters
            .get("service")
            .cloned()
            .unwrap_or_default();
        let actions = match self.access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        };
        let scope = match self.repository.is_empty() {
            true => None,
            false => Some(format!("repository:{}:{actions}", self.repository)),
        };
        let request = match &self.credentials {
            Credentials::IdentityToken(token) => {
                let mut form = url_encoded();
                form.append_pair("grant_type", "refresh_token")
                    .append_pair("refresh_token", token)
                    .append_pair("service", &service)
                    .append_pair("client_id", "caisson");
                if let Some(scope) = &scope {
                    form.append_pair("scope", scope);
                }
                let body = form.finish();
                self.client
                    .post(realm)
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(body)
            }
            credentials => {
                {
                    let mut query = realm.query_pairs_mut();
                    query.append_pair("service", &service);
                    if let Some(scope) = &scope {
                        query.append_pair("scope", scope);
                    }
                    if let Credentials::Basic { username, .. } = credentials {
                        query
                            .append_pair("account", username)
                            .append_pair("client_id", "caisson");
                    }
                }
                let request = self.client.get(realm);
                match credentials {
                    Credentials::Basic { username, password } => {
                        request.header(AUTHORIZATION, basic(username, password))
                    }
                    _ => request,
                }
            }
        };
        let response = request.send().await.map_err(transport)?;
        let response = expect(response, &[StatusCode::OK], || "no such repository".into()).await?;
        #[derive(Deserialize)]
        struct Token {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        let bytes = body(response, MAX_TOKEN_BYTES).await?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|_| {
            Error::Registry("the registry's authentication answers nonsense".into())
        })?;
        match [token.token, token.access_token]
            .into_iter()
            .find(|t| !t.is_empty())
        {
            Some(token) => Ok(token),
            None => Err(Error::Registry(
                "the registry's authentication gives no token".into(),
            )),
        }
    }
}

fn url_encoded() -> url::form_urlencoded::Serializer<'static, String> {
    url::form_urlencoded::Serializer::new(String::new())
}

fn basic(username: &str, password: &str) -> String {
    use base64::Engine as _;
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"))
    )
}

/// One way a registry offers to authenticate.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    scheme: String,
    parameters: HashMap<String, String>,
}

pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .filter_map(challenge)
        .collect()
}

/// `Bearer realm="…",service="…"`. Quoted values may hold commas and escaped quotes.
fn challenge(text: &str) -> Option<Challenge> {
    let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    let mut parameters = HashMap::new();
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        let Some((key, value)) = rest.split_once('=') else {
            break;
        };
        let mut out = String::new();
        rest = match value.strip_prefix('"') {
            Some(quoted) => {
                let mut chars = quoted.char_indices();
                let mut end = quoted.len();
                while let Some((at, c)) = chars.next() {
                    match c {
                        '"' => {
                            end = at + 1;
                            break;
                        }
                        '\\' => out.extend(chars.next().map(|(_, c)| c)),
                        c => out.push(c),
                    }
                }
                &quoted[end..]
            }
            None => {
                let end = value.find(',').unwrap_or(value.len());
                out.push_str(value[..end].trim());
                &value[end..]
            }
        };
        parameters.insert(key.trim().to_lowercase(), out);
    }
    (!scheme.is_empty()).then(|| Challenge {
        scheme: scheme.to_lowercase(),
        parameters,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_taken_apart() {
        let got = challenge(
            r#"Bearer realm="https://auth.x/token?a=b,c",service="reg \"x\"", scope="a:b:pull,push""#,
        );
        let got = got.unwrap();
        assert_eq!(got.scheme, "bearer");
        assert_eq!(got.parameters["realm"], "https://auth.x/token?a=b,c");
        assert_eq!(got.parameters["service"], "reg \"x\"");
        assert_eq!(got.parameters["scope"], "a:b:pull,push");
        assert_eq!(challenge("Basic").unwrap().scheme, "basic");
        assert_eq!(challenge("Basic realm=x").unwrap().parameters["realm"], "x");
        assert_eq!(challenge(""), None);
        assert!(challenge("Bearer realm=\"unterminated").is_some());
    }

    #[test]
    fn secrets_are_not_printed() {
        let secret = Credentials::Basic {
            username: "u".into(),
            password: "hunter2".into(),
        };
        assert!(!format!("{secret:?}").contains("hunter2"));
    }
}
