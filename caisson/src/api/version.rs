//! API versions: `/v1.43/containers/json` and `/containers/json` are the same route; the version a client speaks decides
//! details of answers. Also the headers that every answer carries.

use std::fmt;

use axum::extract::{FromRequestParts, Request};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Uri};

use super::error::ApiError;

/// The version that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion(pub u32, pub u32);

impl ApiVersion {
    /// The newest spoken: what a client gets that does not say.
    pub const NEWEST: ApiVersion = ApiVersion(1, 47);
    /// The oldest spoken.
    pub const OLDEST: ApiVersion = ApiVersion(1, 24);

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        let number = |t: &str| {
            (t.len() <= 4 && t.bytes().all(|b| b.is_ascii_digit()))
                .then(|| t.parse().ok())
                .flatten()
        };
        Some(ApiVersion(number(major)?, number(minor)?))
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl<S: Sync> FromRequestParts<S> for ApiVersion {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts
            .extensions
            .get()
            .copied()
            .unwrap_or(ApiVersion::NEWEST))
    }
}

/// Splits `/v1.43/rest` into version and `/rest`; other paths are unversioned.
fn split(path: &str) -> (Option<&str>, &str) {
    let versioned = path.strip_prefix("/v").and_then(|rest| {
        let end = rest.find('/')?;
        let version = &rest[..end];
        let looks_right = version.starts_with(|c: char| c.is_ascii_digit())
            && version.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        looks_right.then_some((version, &rest[end..]))
    });
    match versioned {
        Some((version, rest)) => (Some(version), rest),
        None => (None, path),
    }
}

/// Notes the client's version in the request and takes it off the path, or says why it cannot be spoken.
pub fn negotiate<B>(request: &mut Request<B>) -> Result<(), ApiError> {
    let (Some(version), rest) = split(request.uri().path()) else {
        return Ok(());
    };
    let Some(spoken) = ApiVersion::parse(version) else {
        return Err(ApiError::bad(format!("invalid API version: {version}")));
    };
    if spoken < ApiVersion::OLDEST {
        return Err(ApiError::bad(format!(
            "client version {spoken} is too old. Minimum supported API version is {}, please upgrade your client to a newer version",
            ApiVersion::OLDEST
        )));
    }
    if spoken > ApiVersion::NEWEST {
        return Err(ApiError::bad(format!(
            "client version {spoken} is too new. Maximum supported API version is {}",
            ApiVersion::NEWEST
        )));
    }
    let target = match request.uri().query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    let uri =
        Uri::try_from(target).map_err(|e| ApiError::bad(format!("bad request target: {e}")))?;
    *request.uri_mut() = uri;
    request.extensions_mut().insert(spoken);
    Ok(())
}

/// The headers of every answer.
pub fn stamp(headers: &mut HeaderMap) {
    headers.insert(
        "api-version",
        HeaderValue::from_static(caisson_api::API_VERSION),
    );
    headers.insert("docker-experimental", HeaderValue::from_static("false"));
    headers.insert("ostype", HeaderValue::from_static("linux"));
    headers.insert(
        "server",
        HeaderValue::from_static(concat!("caisson/", env!("CARGO_PKG_VERSION"), " (linux)")),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiated(target: &str) -> Result<(String, Option<ApiVersion>), ApiError> {
        let mut request = Request::builder()
            .uri(target)
            .body(())
            .expect("valid request");
        negotiate(&mut request)?;
        Ok((
            request.uri().to_string(),
            request.extensions().get().copied(),
        ))
    }

    #[test]
    fn the_prefix_is_cut_off_and_remembered() {
        assert_eq!(
            negotiated("/v1.43/images/a%2Fb/json?x=%20"),
            Ok(("/images/a%2Fb/json?x=%20".into(), Some(ApiVersion(1, 43))))
        );
        assert_eq!(
            negotiated("/containers/json"),
            Ok(("/containers/json".into(), None))
        );
        assert_eq!(
            negotiated("/volumes/v1.2"),
            Ok(("/volumes/v1.2".into(), None))
        );
        assert_eq!(negotiated("/version"), Ok(("/version".into(), None)));
    }

    #[test]
    fn versions_out_of_range_get_dockers_words() {
        let old = negotiated("/v1.12/_ping").expect_err("too old");
        assert_eq!(old.status.as_u16(), 400);
        assert_eq!(
            old.message,
            "client version 1.12 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"
        );
        let new = negotiated("/v1.99/_ping").expect_err("too new");
        assert_eq!(
            new.message,
            "client version 1.99 is too new. Maximum supported API version is 1.47"
        );
        assert!(
            negotiated("/v1.100/_ping").is_err(),
            "1.100 is newer than 1.47"
        );
        assert!(negotiated("/v1./_ping").is_err());
        assert!(negotiated("/v1.2.3/_ping").is_err());
    }

    #[test]
    fn constants_agree() {
        assert_eq!(ApiVersion::NEWEST.to_string(), caisson_api::API_VERSION);
        assert_eq!(ApiVersion::OLDEST.to_string(), caisson_api::MIN_API_VERSION);
    }
}
