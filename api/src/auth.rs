//! Registry credentials: body of `POST /auth`, and `X-Registry-Auth` before base64.

use serde::{Deserialize, Serialize};

use crate::json::is_default;

#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "lowercase")]
pub struct AuthConfig {
    #[serde(skip_serializing_if = "is_default")]
    pub username: String,
    #[serde(skip_serializing_if = "is_default")]
    pub password: String,
    #[serde(skip_serializing_if = "is_default")]
    pub auth: String,
    #[serde(skip_serializing_if = "is_default")]
    pub email: String,
    #[serde(skip_serializing_if = "is_default")]
    pub serveraddress: String,
    #[serde(skip_serializing_if = "is_default")]
    pub identitytoken: String,
    #[serde(skip_serializing_if = "is_default")]
    pub registrytoken: String,
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("serveraddress", &self.serveraddress)
            .finish_non_exhaustive()
    }
}

/// Answer of `POST /auth`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct AuthResponse {
    pub identity_token: String,
    pub status: String,
}
