//! Tidegate over HTTP: a router to mount in an application of your own, and what `tidegate serve` is made of.
//!
//! [`router`] is all there is to it: `/v1` for messages, workers and operators, `/problems` for what an answer may say
//! instead, `/openapi.json` and `/docs` for people. One endpoint is one file: its path, its function, what it answers, and
//! its line in [`routes`]. Nothing here decides about a message; the store does, and `problem.rs` says what its errors are
//! called over HTTP.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use tidegate_server::{Serving, router};
//!
//! let tide = tidegate::Tidegate::open("tidegate.db").await?;
//! let serving = Serving { prefix: "/queues".to_owned(), ..Serving::new(tide.clone()) };
//! let stopping = serving.stopping.clone();
//! // Drives the operations on that somebody begins: redrives of many dead letters.
//! let driving = tokio::spawn(serving.drive());
//! let app = axum::Router::new().nest("/queues", router(serving));
//! # let _: axum::Router = app;
//! // … and when the application ends:
//! stopping.stop();
//! driving.await?;
//! tide.close().await;
//! # Ok(())
//! # }
//! ```

mod acting;
mod audit;
mod body;
mod cancel;
mod cloudevents;
mod discard;
mod docs;
mod drive;
mod edit;
mod enqueue;
mod enqueue_many;
mod explain;
mod find;
mod flow;
mod get;
mod groups;
mod guard;
mod health;
mod idempotency;
mod inspect;
mod limits;
mod list;
mod metrics;
mod observe;
mod openapi;
mod operations;
mod pace;
mod paging;
mod parked;
mod peers;
mod principal;
mod problem;
mod problems;
mod progress;
mod queues;
mod queues_made;
mod rates;
mod redrive;
mod resolve;
mod serve;
mod serving;
mod stats;
mod strict;
mod tls;
mod tokens;
mod trace;
mod url;
mod wait;
mod whose;

// Of workers.
mod answer_effect;
mod claim;
mod declare;
mod extend;
mod items;
mod journal;
mod reach;
mod settle;
mod sweep;
mod workers;

use std::sync::Arc;

use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use drive::Driver;
pub use guard::{Demand, Guard};
pub use health::Health;
pub use limits::Limits;
pub use metrics::{Connection, HttpMetrics, Rejected, metrics_specimen, prometheus_text};
pub use openapi::openapi;
pub use pace::{Pace, TooSlow};
pub use principal::{Action, Caller, Principal};
pub use problem::Problem;
pub use queues_made::QueuesMade;
pub use rates::{Rate, Rates};
pub use serve::{Serve, Served, Stop, serve};
pub use serving::{Serving, Stopping};
pub use tls::{Tls, TlsError};
pub use workers::Workers;

#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;

/// The whole API.
pub fn router(serving: Serving) -> axum::Router {
    let serving = Arc::new(serving);
    let (router, document) = routes().split_for_parts();
    let authenticate = axum::middleware::from_fn_with_state(Arc::clone(&serving), principal::authenticate);
    let limit = axum::middleware::from_fn_with_state(Arc::clone(&serving), rates::limit);
    let head = axum::middleware::from_fn_with_state(Arc::clone(&serving), limits::head);
    let observe = axum::middleware::from_fn_with_state(Arc::clone(&serving), observe::observe);
    let place = axum::middleware::from_fn_with_state(Arc::clone(&serving), problem::place);
    router
        .merge(health::routes())
        .merge(metrics::routes())
        .layer(axum::Extension(openapi::Document::of(&document)))
        .layer(limit)
        .layer(authenticate)
        .fallback(problem::no_such_address)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(head)
        .layer(CatchPanicLayer::custom(problem::panicked))
        .layer(place)
        .layer(observe)
        .with_state(serving)
}

/// Every endpoint, with what the document says of it.
fn routes() -> OpenApiRouter<Arc<Serving>> {
    OpenApiRouter::with_openapi(openapi::head())
        .routes(routes!(enqueue::enqueue))
        .routes(routes!(enqueue_many::enqueue_many))
        .routes(routes!(cloudevents::take_events))
        .routes(routes!(list::list))
        .routes(routes!(get::get))
        .routes(routes!(explain::explain))
        .routes(routes!(find::find))
        .routes(routes!(flow::flow))
        .routes(routes!(tokens::list_tokens, tokens::create_token))
        .routes(routes!(tokens::rotate_token))
        .routes(routes!(tokens::revoke_token))
        .routes(routes!(openapi::document))
        .routes(routes!(docs::page))
        .routes(routes!(docs::part))
        .routes(routes!(problems::index))
        .routes(routes!(problems::page))
        .merge(operators())
        .merge(of_workers())
}

/// What operators do: triage, queues, operations.
fn operators() -> OpenApiRouter<Arc<Serving>> {
    OpenApiRouter::new()
        .routes(routes!(queues::list_queues))
        .routes(routes!(queues::get_queue, queues::change_queue))
        .routes(routes!(stats::stats))
        .routes(routes!(groups::groups))
        .routes(routes!(parked::parked))
        .routes(routes!(audit::audit, audit::note))
        .routes(routes!(inspect::inspect))
        .routes(routes!(progress::progress))
        .routes(routes!(redrive::redrive))
        .routes(routes!(discard::discard))
        .routes(routes!(cancel::cancel))
        .routes(routes!(edit::edit))
        .routes(routes!(resolve::resolve))
        .routes(routes!(operations::preview_operation))
        .routes(routes!(operations::list_operations, operations::begin_operation))
        .routes(routes!(operations::get_operation, operations::act_on_operation))
}

/// What a worker asks for.
fn of_workers() -> OpenApiRouter<Arc<Serving>> {
    OpenApiRouter::new()
        .routes(routes!(claim::claim))
        .routes(routes!(extend::extend))
        .routes(routes!(journal::journal))
        .routes(routes!(settle::settle))
        .routes(routes!(reach::reach))
        .routes(routes!(answer_effect::answer_effect))
        .routes(routes!(declare::declare))
        .routes(routes!(sweep::sweep))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// Addresses and methods as the router itself has them: it lists them nowhere but in what it prints of itself.
    fn routed(router: &axum::Router<Arc<Serving>>) -> BTreeSet<(String, String)> {
        let printed = format!("{router:?}");
        let own = printed.split("fallback_router").next().unwrap();
        let (routes, paths) = own.split_once("node: Node { paths: {").unwrap();
        let paths: BTreeMap<&str, &str> = (paths.split("RouteId(").skip(1))
            .map(|entry| (entry.split(')').next().unwrap(), entry.split('"').nth(1).unwrap()))
            .collect();
        let mut found = BTreeSet::new();
        for route in routes.split("RouteId(").skip(1) {
            let path = paths[route.split(')').next().unwrap()];
            let (_, methods) = route.split_once("MethodRouter {").unwrap();
            let methods = methods.split("fallback:").next().unwrap();
            for method in methods.split(", ").filter_map(|field| field.trim().split_once(": ")) {
                if method.1 != "None" {
                    found.insert((path.to_owned(), method.0.to_owned()));
                }
            }
        }
        found
    }

    #[test]
    fn every_route_of_the_router_is_in_the_document_and_the_reverse() {
        let (router, document) = routes().split_for_parts();
        let document = serde_json::to_value(&document).unwrap();
        let mut documented = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                documented.insert((path.clone(), method.clone()));
            }
        }
        assert!(documented.len() > 10, "{documented:?}");
        assert_eq!(routed(&router), documented);
        // And a route that is in no document is found to be one.
        let hidden = router.route("/hidden", axum::routing::put(async || "hidden"));
        let more: Vec<_> = routed(&hidden).difference(&documented).cloned().collect();
        assert_eq!(more, [("/hidden".to_owned(), "put".to_owned())]);
    }
}
