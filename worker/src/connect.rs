//! The connection to the coordinator.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint, Error};

/// Opens it, with keep-alive so that a silent peer is noticed.
pub(crate) async fn connect(url: &str) -> Result<Channel, Error> {
    Endpoint::from_shared(url.to_owned())?
        .connect_timeout(Duration::from_secs(10))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .connect()
        .await
}
