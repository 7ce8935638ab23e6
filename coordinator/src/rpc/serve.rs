//! All services on one port.

use std::future::Future;
use std::time::Duration;

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use foil_common::rpc::{CONNECTION_WINDOW, REPORT_BYTES, REQUEST_BYTES, STREAM_WINDOW};
use foil_common::storage::{Store, StoreError};
use foil_common::tls::ServerTls;
use foil_common::version::{self, BUILD, VERSION};
use foil_proto::v1::access_server::AccessServer;
use foil_proto::v1::agents_server::AgentsServer;
use foil_proto::v1::artifacts_server::ArtifactsServer;
use foil_proto::v1::jobs_server::JobsServer;
use foil_proto::v1::results_server::ResultsServer;
use foil_proto::v1::storage_server::StorageServer;
use foil_proto::v1::tenants_server::TenantsServer;
use foil_proto::v1::trackers_server::TrackersServer;
use foil_proto::v1::workers_server::WorkersServer;
use futures::StreamExt;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::access::AccessService;
use super::artifacts::ArtifactsService;
use super::auth::{Gate, authorize};
use super::connections::{Limits, Registry, incoming, track};
use super::grpc_web::{Origins, grpc_web};
use super::normalize::normalize;
use super::tenants::TenantsService;
use super::{AgentsService, JobsService, ResultsService, StorageService, TrackersService, WorkersService};
use crate::audit::{AuditLog, AuditRetention};
use crate::auth::Authenticator;
use crate::clock::Clock;
use crate::collector::{Collector, InUse};
use crate::driver::{DriverError, Settings};
use crate::leadership::{Election, LeadershipHandle};
use crate::resolve::Resolver;
use crate::trackers::{self, Board, Sources, Trackers};
use crate::web;

const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
const STREAMS_PER_CONNECTION: u32 = 128;
/// Number of calls per connection that are handled concurrently; streams count until they are answered.
const CALLS_PER_CONNECTION: usize = 32;
/// Size limit of requests to the services Tenants, Trackers and Results.
const SMALL_REQUEST_BYTES: usize = 64 << 10;
/// Size limit of a request's headers.
const HEADER_BYTES: u32 = 16 << 10;
/// Maximum number of streams that a connection may reset before they are handled, and of streams reset
/// because of its errors, before the connection is closed as abusive.
const RESET_STREAMS: usize = 64;
/// Grace period for open calls after the driver has stopped.
const GRACE: Duration = Duration::from_secs(3);

/// Configuration of a coordinator.
pub struct Serve {
    pub store: Store,
    /// Bound by the caller, which decides who can reach it.
    pub listener: TcpListener,
    /// Plaintext if not given.
    pub tls: Option<ServerTls>,
    /// Without an authenticator, every caller is an admin.
    pub auth: Option<Authenticator>,
    /// The log of changes and refusals.
    pub audit: Option<AuditLog>,
    /// Deletes old records of the audit log while this coordinator leads.
    pub audit_retention: Option<AuditRetention>,
    /// URL at which clients and workers reach the listener; empty if unknown.
    pub address: String,
    /// Become the leader immediately, whichever coordinator leads.
    pub take_over: bool,
    /// Directory of the `foil run` that owns this store, quoted for a shell.
    pub run_directory: Option<String>,
    pub metrics: PrometheusHandle,
    pub settings: Settings,
    pub limits: Limits,
    /// Reads the inputs of submitted jobs.
    pub resolver: Resolver,
    /// Interval of garbage collections while this coordinator leads; never if not given.
    pub collect_garbage_every: Option<Duration>,
    /// Experiment trackers that jobs may name.
    pub trackers: trackers::Config,
    /// Size from which ranks read and write objects in the store itself, if it has URLs; never if not given.
    pub direct_transfers: Option<u64>,
    /// Shows whether this coordinator leads.
    pub leadership: LeadershipHandle,
}

impl Serve {
    pub fn new(store: Store, listener: TcpListener, metrics: PrometheusHandle) -> Self {
        let resolver = Resolver::here(store.clone());
        Self {
            store,
            listener,
            tls: None,
            auth: None,
            audit: None,
            audit_retention: None,
            address: String::new(),
            take_over: false,
            run_directory: None,
            metrics,
            settings: Settings::default(),
            limits: Limits::default(),
            resolver,
            collect_garbage_every: None,
            trackers: trackers::Config::default(),
            direct_transfers: None,
            leadership: LeadershipHandle::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    #[error("cannot report to an experiment tracker: {0}")]
    Trackers(String),
    #[error("cannot offer reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("a task of the coordinator panicked; please report this")]
    Panicked,
}

/// Starts listening, initially as a standby. Rejects a store that allows creating a key twice. The returned
/// future serves until `stop` is canceled, or fails if the log cannot be written; the process must then be
/// restarted.
pub async fn serve(
    options: Serve,
    stop: CancellationToken,
) -> Result<impl Future<Output = Result<(), ServeError>>, ServeError> {
    options.store.probe().await?;
    let Serve {
        store,
        listener,
        tls,
        auth,
        audit,
        audit_retention,
        address,
        take_over,
        run_directory,
        metrics,
        settings,
        limits,
        resolver,
        collect_garbage_every,
        trackers,
        direct_transfers,
        leadership,
    } = options;
    let (in_use, clock) = (InUse::default(), Clock::start());
    let collector = Collector::new(store.clone(), leadership.clone(), in_use.clone(), clock);
    let results = ResultsService::new(leadership.clone(), store.clone());
    let (feed, board) = (results.feed(), Board::default());
    let sources =
        Sources { leadership: leadership.clone(), feed, store: store.clone(), clock, board: board.clone() };
    let deliveries = Trackers::new(&trackers, sources).map_err(ServeError::Trackers)?;
    let services = Services {
        leadership: leadership.clone(),
        store: store.clone(),
        resolver,
        in_use,
        collector: collector.clone(),
        clock,
        allow_version_skew: settings.allow_version_skew,
        results,
        trackers,
        board,
        direct_transfers,
    };
    let origins = Origins::new(auth.is_some(), &address);
    let gate = Gate::new(auth, audit, leadership.clone(), clock);
    let mut routes = routes(services, metrics, run_directory).await?;
    tokio::spawn(deliveries.run(stop.clone().cancelled_owned()));
    if let Some(period) = collect_garbage_every {
        tokio::spawn(collector.collect_every(period, stop.clone().cancelled_owned()));
    }
    if let Some(retention) = audit_retention {
        tokio::spawn(retention.run(leadership.clone(), clock, stop.clone().cancelled_owned()));
    }
    let router = routes.axum_router_mut();
    // The last layer is the outermost, so that an unauthenticated caller does not learn the version.
    *router = std::mem::take(router)
        .layer(from_fn(name_version))
        .layer(from_fn_with_state(gate, authorize))
        .layer(from_fn(normalize))
        .layer(from_fn_with_state(origins, grpc_web))
        .layer(from_fn(track));
    let server = Server::builder()
        // Browsers, Prometheus and probes use HTTP/1.
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(RESET_STREAMS))
        .http2_max_local_error_reset_streams(Some(RESET_STREAMS))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_routes(routes);
    let ended = CancellationToken::new();
    let incoming = incoming(listener, Registry::new(limits), tls);
    let server = tokio::spawn(server.serve_with_incoming_shutdown(incoming, ended.clone().cancelled_owned()));
    let election = Election { store, address, take_over, settings, clock, handle: leadership };
    let election = tokio::spawn(async move { election.run(stop).await });
    Ok(async move {
        let led = election.await.map_err(|_| ServeError::Panicked)?;
        ended.cancel();
        // The end of the driver has closed the streams of workers and watchers; other calls get a moment to
        // finish.
        let abort = server.abort_handle();
        match tokio::time::timeout(GRACE, server).await {
            Ok(Ok(served)) => served?,
            Ok(Err(_)) => return Err(ServeError::Panicked),
            Err(_) => abort.abort(),
        }
        Ok(led?)
    })
}

/// Adds this program's version to a response.
async fn name_version(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Ok(version) = HeaderValue::from_str(format!("{VERSION} {BUILD}").trim_end()) {
        response.headers_mut().insert(version::HEADER, version);
    }
    response
}

/// State that the services share.
struct Services {
    leadership: LeadershipHandle,
    store: Store,
    resolver: Resolver,
    in_use: InUse,
    collector: Collector,
    clock: Clock,
    allow_version_skew: bool,
    results: ResultsService,
    trackers: trackers::Config,
    board: Board,
    direct_transfers: Option<u64>,
}

async fn routes(
    services: Services,
    metrics: PrometheusHandle,
    run_directory: Option<String>,
) -> Result<Routes, ServeError> {
    let Services {
        leadership,
        store,
        resolver,
        in_use,
        collector,
        clock,
        allow_version_skew,
        results,
        trackers,
        board,
        direct_transfers,
    } = services;
    let (health, health_service) = tonic_health::server::health_reporter();
    set_health(&health, false).await;
    let mut changes = Box::pin(leadership.changes());
    tokio::spawn(async move {
        while let Some(leads) = changes.next().await {
            set_health(&health, leads).await;
        }
    });
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(foil_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let older_reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(foil_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1alpha()?;
    let jobs = JobsService::new(leadership.clone(), resolver, store.clone(), in_use.clone(), clock);
    let jobs = JobsServer::new(jobs.with_trackers(trackers.clone()));
    let agents = AgentsServer::new(AgentsService::new(leadership.clone(), clock));
    let results = ResultsServer::new(results);
    let storage = StorageServer::new(StorageService::new(leadership.clone(), collector));
    let tenants = TenantsServer::new(TenantsService::new(leadership.clone()));
    let trackers =
        TrackersServer::new(TrackersService::new(leadership.clone(), store.clone(), trackers, board));
    let workers = WorkersServer::new(WorkersService::new(leadership.clone(), &store, allow_version_skew));
    let artifacts = ArtifactsService::new(store.clone(), leadership.clone(), in_use);
    let artifacts = artifacts.with_direct_transfers(direct_transfers);
    let services = Routes::new(health_service)
        .add_service(reflection)
        .add_service(older_reflection)
        .add_service(AccessServer::new(AccessService))
        .add_service(jobs.max_decoding_message_size(REQUEST_BYTES))
        .add_service(agents.max_decoding_message_size(REQUEST_BYTES))
        .add_service(results.max_decoding_message_size(SMALL_REQUEST_BYTES))
        .add_service(storage.max_decoding_message_size(REQUEST_BYTES))
        .add_service(tenants.max_decoding_message_size(SMALL_REQUEST_BYTES))
        .add_service(trackers.max_decoding_message_size(SMALL_REQUEST_BYTES))
        .add_service(workers.max_decoding_message_size(REPORT_BYTES))
        .add_service(artifacts.into_server());
    let readiness = move || leadership.readiness(store.trouble());
    Ok(web::merge(services, web::router(metrics, run_directory, readiness)))
}

const LEADER_SERVICES: [&str; 8] = [
    AgentsServer::<AgentsService>::NAME,
    JobsServer::<JobsService>::NAME,
    ResultsServer::<ResultsService>::NAME,
    StorageServer::<StorageService>::NAME,
    TenantsServer::<TenantsService>::NAME,
    TrackersServer::<TrackersService>::NAME,
    WorkersServer::<WorkersService>::NAME,
    ArtifactsServer::<ArtifactsService>::NAME,
];
const COMMON_SERVICES: [&str; 4] = [
    AccessServer::<AccessService>::NAME,
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// Sets the health of each service. The server as a whole is healthy even as a standby.
async fn set_health(health: &HealthReporter, leads: bool) {
    let status = if leads { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in LEADER_SERVICES {
        health.set_service_status(service, status).await;
    }
    for service in COMMON_SERVICES {
        health.set_service_status(service, ServingStatus::Serving).await;
    }
}
