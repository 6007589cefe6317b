//! From what went wrong to what HTTP says: the one place where kinds of errors become statuses.

use axum::response::{IntoResponse, Response};
use caisson_engine::ErrorKind;
use http::{StatusCode, header};

/// An error answer: a status and Docker's `{"message": …}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
}

/// Results of handlers.
pub type ApiResult<T = Response> = Result<T, ApiError>;

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        ApiError {
            status,
            message: message.into(),
        }
    }

    /// The request makes no sense.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// No such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// A failure of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

/// The status that Docker gives for a kind of error.
pub fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Invalid | ErrorKind::CommandNotFound | ErrorKind::CommandNotExecutable => {
            StatusCode::BAD_REQUEST
        }
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorKind::NotImplemented => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::Unavailable | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<caisson_engine::Error> for ApiError {
    fn from(error: caisson_engine::Error) -> Self {
        let status = status_of(error.kind());
        ApiError {
            status,
            message: message_for_clients(error.kind(), error.message),
        }
    }
}

/// Docker's command line derives the exit codes 127 and 126 from these phrases in the message, so they must be in it.
pub fn message_for_clients(kind: ErrorKind, message: String) -> String {
    let (phrases, phrase): (&[&str], &str) = match kind {
        ErrorKind::CommandNotFound => (
            &["executable file not found", "no such file or directory"],
            "executable file not found in $PATH",
        ),
        ErrorKind::CommandNotExecutable => (
            &["permission denied", "exec format error"],
            "permission denied",
        ),
        _ => return message,
    };
    let lower = message.to_lowercase();
    if phrases.iter().any(|p| lower.contains(p)) {
        message
    } else {
        format!("{message}: {phrase}")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::error!(status = self.status.as_u16(), "{}", self.message);
        } else {
            tracing::debug!(status = self.status.as_u16(), "{}", self.message);
        }
        let body = caisson_api::ErrorBody {
            message: self.message,
        };
        let text = serde_json::to_vec(&body).expect("a struct of one string serialises");
        (
            self.status,
            [(header::CONTENT_TYPE, "application/json")],
            text,
        )
            .into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_dockers_status() {
        for (kind, status) in [
            (ErrorKind::NotFound, 404),
            (ErrorKind::Invalid, 400),
            (ErrorKind::Conflict, 409),
            (ErrorKind::Forbidden, 403),
            (ErrorKind::Unauthorized, 401),
            (ErrorKind::NotImplemented, 501),
            (ErrorKind::CommandNotFound, 400),
            (ErrorKind::CommandNotExecutable, 400),
            (ErrorKind::Unavailable, 500),
            (ErrorKind::Internal, 500),
        ] {
            assert_eq!(status_of(kind).as_u16(), status, "{kind:?}");
        }
    }

    #[test]
    fn messages_carry_the_phrases_that_become_exit_codes() {
        let message = message_for_clients(ErrorKind::CommandNotFound, "exec: \"nope\"".into());
        assert!(message.contains("executable file not found"), "{message}");
        let said = "exec: \"nope\": executable file not found in $PATH";
        assert_eq!(
            message_for_clients(ErrorKind::CommandNotFound, said.into()),
            said
        );
        assert!(
            message_for_clients(ErrorKind::CommandNotExecutable, "exec /etc".into())
                .contains("permission denied")
        );
        assert_eq!(message_for_clients(ErrorKind::Invalid, "x".into()), "x");
    }
}
