//! All services on one port.

use std::future::Future;
use std::time::Duration;

use foil_common::storage::Store;
use foil_proto::v1::jobs_server::JobsServer;
use foil_proto::v1::workers_server::WorkersServer;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use super::artifacts::ArtifactsService;
use super::{JobsService, WorkersService};
use crate::driver::{Driver, DriverError, Handle, Settings};
use crate::web::{self, Readiness};

const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
const STREAMS_PER_CONNECTION: u32 = 256;
/// For open calls to end after the driver has.
const GRACE: Duration = Duration::from_secs(3);

/// What a coordinator serves, and where.
pub struct Serve {
    pub store: Store,
    /// Bound by the caller, who decides who can reach it: there is no authentication.
    pub listener: TcpListener,
    pub metrics: PrometheusHandle,
    pub settings: Settings,
}

impl Serve {
    pub fn new(store: Store, listener: TcpListener, metrics: PrometheusHandle) -> Self {
        Self { store, listener, metrics, settings: Settings::default() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error("the server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    #[error("cannot offer reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("a task of the coordinator panicked; please report this")]
    Panicked,
}

/// Becomes the store's leader. The future it answers with serves until `stop` is cancelled, or fails where the log
/// cannot be written: then the process must end, and be started again.
pub async fn serve(
    options: Serve,
    stop: CancellationToken,
) -> Result<impl Future<Output = Result<(), ServeError>>, ServeError> {
    let leader = options.listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
    let (driver, handle) = Driver::open(options.store.clone(), &leader, options.settings).await?;
    serve_driver(options, driver, handle, stop).await
}

pub(super) async fn serve_driver(
    options: Serve,
    driver: Driver,
    handle: Handle,
    stop: CancellationToken,
) -> Result<impl Future<Output = Result<(), ServeError>>, ServeError> {
    let routes = routes(handle, options.store, options.metrics).await?;
    let server = Server::builder()
        // Browsers, Prometheus and probes speak HTTP/1.
        .accept_http1(true)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .tcp_nodelay(true)
        .add_routes(routes);
    let ended = CancellationToken::new();
    let incoming = TcpListenerStream::new(options.listener);
    let server = tokio::spawn(server.serve_with_incoming_shutdown(incoming, ended.clone().cancelled_owned()));
    let driver = tokio::spawn(driver.run(stop.cancelled_owned()));
    Ok(async move {
        let driven = driver.await.map_err(|_| ServeError::Panicked)?;
        ended.cancel();
        // The driver's end has closed the workers' and watchers' streams; others get a moment to finish.
        let abort = server.abort_handle();
        match tokio::time::timeout(GRACE, server).await {
            Ok(Ok(served)) => served?,
            Ok(Err(_)) => return Err(ServeError::Panicked),
            Err(_) => abort.abort(),
        }
        Ok(driven?)
    })
}

async fn routes(driver: Handle, store: Store, metrics: PrometheusHandle) -> Result<Routes, ServeError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<JobsServer<JobsService>>().await;
    health.set_serving::<WorkersServer<WorkersService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(foil_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let attempts = driver.clone();
    let artifacts = ArtifactsService::new(store.clone(), move |job: &str| attempts.current_attempt(job));
    let services = Routes::new(health_service)
        .add_service(reflection)
        .add_service(JobsServer::new(JobsService::new(driver.clone(), store)))
        .add_service(WorkersServer::new(WorkersService::new(driver)))
        .add_service(artifacts.into_server());
    // A server that listens has replayed its log: it is ready from its first answer on.
    Ok(web::merge(services, web::router(metrics, || Readiness::Ready)))
}
