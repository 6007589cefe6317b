//! The Docker Engine API over HTTP: requests in, [`Engine`] called, answers out. Decides nothing about containers.
//!
//! ```text
//! request ─▶ version (prefix cut off, checked) ─▶ router ─▶ handler (params, body) ─▶ Engine ─▶ JSON | stream | hijack
//! ```

mod archive;
mod attach;
mod body;
mod containers;
mod error;
mod exec;
mod hangup;
mod images;
mod info;
mod networks;
mod params;
mod ps;
mod stream;
mod system;
mod version;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, head, post};
use caisson_engine::Engine;
use hyper::body::Incoming;
use tower::Service;

use crate::daemon::Settings;
use error::ApiError;

/// What handlers share.
#[derive(Clone)]
pub struct App {
    /// The engine.
    pub engine: Engine,
    /// How the daemon was started, for `info`.
    pub settings: Arc<Settings>,
    /// Names this daemon's state for good.
    pub id: Arc<str>,
}

/// The whole API as a service for one daemon.
pub fn service(engine: Engine, settings: &Settings, id: &str) -> ApiService {
    let app = App {
        engine,
        settings: Arc::new(settings.clone()),
        id: id.into(),
    };
    ApiService {
        router: routes().with_state(app),
    }
}

/// Cuts the version prefix off, then routes.
#[derive(Clone)]
pub struct ApiService {
    router: Router,
}

impl Service<Request<Incoming>> for ApiService {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let mut request = request.map(Body::new);
        let routed = version::negotiate(&mut request).map(|()| self.router.call(request));
        Box::pin(async move {
            let mut response = match routed {
                Ok(routed) => routed.await?,
                Err(refused) => refused.into_response(),
            };
            version::stamp(response.headers_mut());
            Ok(response)
        })
    }
}

fn routes() -> Router<App> {
    Router::new()
        // the daemon
        .route("/_ping", get(system::ping).head(system::ping))
        .route("/version", get(system::version))
        .route("/info", get(info::info))
        .route("/events", get(system::events))
        .route("/auth", post(images::auth))
        .route("/system/df", get(system::disk_usage))
        // containers
        .route("/containers/json", get(ps::list))
        .route("/containers/create", post(containers::create))
        .route("/containers/prune", post(containers::prune))
        .route("/containers/{id}", delete(containers::remove))
        .route("/containers/{id}/json", get(containers::inspect))
        .route("/containers/{id}/start", post(containers::start))
        .route("/containers/{id}/stop", post(containers::stop))
        .route("/containers/{id}/restart", post(containers::restart))
        .route("/containers/{id}/kill", post(containers::kill))
        .route("/containers/{id}/pause", post(containers::pause))
        .route("/containers/{id}/unpause", post(containers::unpause))
        .route("/containers/{id}/rename", post(containers::rename))
        .route("/containers/{id}/update", post(containers::update))
        .route("/containers/{id}/wait", post(containers::wait))
        .route("/containers/{id}/top", get(ps::top))
        .route("/containers/{id}/stats", get(ps::stats))
        .route("/containers/{id}/logs", get(attach::logs))
        .route("/containers/{id}/attach", post(attach::attach))
        .route("/containers/{id}/resize", post(attach::resize))
        .route("/containers/{id}/exec", post(exec::create))
        .route("/containers/{id}/changes", get(archive::changes))
        .route("/containers/{id}/export", get(archive::export))
        .route(
            "/containers/{id}/archive",
            head(archive::stat).get(archive::read).put(archive::write),
        )
        .route("/exec/{id}/start", post(exec::start))
        .route("/exec/{id}/json", get(exec::inspect))
        .route("/exec/{id}/resize", post(exec::resize))
        .route("/commit", post(containers::commit))
        // images; their names contain slashes, so one route splits the rest by hand
        .route("/images/json", get(images::list))
        .route("/images/create", post(images::create))
        .route("/images/load", post(images::load))
        .route("/images/get", get(images::save))
        .route("/images/prune", post(images::prune))
        .route("/images/search", get(images::search))
        .route(
            "/images/{*rest}",
            get(images::get_one)
                .post(images::post_one)
                .delete(images::remove),
        )
        .route("/distribution/{*rest}", get(images::distribution))
        // what has no backing yet, answered so that clients that merely look get on
        .route("/networks", get(networks::list))
        .route("/networks/{id}", get(networks::inspect))
        .route("/networks/prune", post(networks::prune))
        .route("/networks/create", post(networks::unavailable))
        .route("/volumes", get(networks::volumes))
        .route("/volumes/prune", post(networks::prune_volumes))
        .route("/volumes/create", post(networks::unavailable_volume))
        .route(
            "/volumes/{name}",
            get(networks::no_volume).delete(networks::no_volume),
        )
        .route("/plugins", get(networks::plugins))
        .route("/build/prune", post(networks::prune_builds))
        .route("/swarm", get(networks::no_swarm))
        .route(
            "/swarm/{*rest}",
            get(networks::no_swarm).post(networks::no_swarm),
        )
        .route("/nodes", get(networks::no_swarm))
        .route(
            "/nodes/{*rest}",
            get(networks::no_swarm)
                .post(networks::no_swarm)
                .delete(networks::no_swarm),
        )
        .route("/services", get(networks::no_swarm))
        .route(
            "/services/{*rest}",
            get(networks::no_swarm)
                .post(networks::no_swarm)
                .delete(networks::no_swarm),
        )
        .route("/tasks", get(networks::no_swarm))
        .route("/tasks/{*rest}", get(networks::no_swarm))
        .route("/secrets", get(networks::no_swarm))
        .route(
            "/secrets/{*rest}",
            get(networks::no_swarm)
                .post(networks::no_swarm)
                .delete(networks::no_swarm),
        )
        .route("/configs", get(networks::no_swarm))
        .route(
            "/configs/{*rest}",
            get(networks::no_swarm)
                .post(networks::no_swarm)
                .delete(networks::no_swarm),
        )
        .fallback(nothing_here)
        .method_not_allowed_fallback(nothing_here)
}

async fn nothing_here() -> ApiError {
    ApiError::not_found("page not found")
}
