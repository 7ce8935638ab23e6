//! The rendezvous store: a small key-value store that one process serves to its group.

use std::net::TcpListener;
use std::os::fd::IntoRawFd;
use std::time::Duration;

use cxx::UniquePtr;

use crate::error::{During, Error, Result, listen};
use crate::ffi;

/// c10d's `TCPStore`, or a view of one under a key prefix.
///
/// Views share the connection. Keys exist until the host's store and all views of it are dropped.
pub struct Store {
    inner: UniquePtr<ffi::Store>,
}

// SAFETY: c10d's stores tie nothing to the thread that created them: they guard their connection by a lock
// and count their uses atomically; a `Store` is used by one thread at a time since it is not `Sync`.
unsafe impl Send for Store {}

impl Store {
    /// Serves a store on `address` (a host name or IP address of this machine) at a free port; see
    /// [`Store::port`]. `timeout` bounds every wait on it.
    ///
    /// # Errors
    /// [`Error::Listen`] if the address is not this machine's; [`Error::Torch`] if the server fails to start.
    pub fn host(address: &str, timeout: Duration) -> Result<Self> {
        Self::host_on(listen(address)?, address, timeout)
    }

    /// Like [`Store::host`], on a socket that already listens on `address`.
    ///
    /// # Errors
    /// [`Error::Torch`] if the server fails to start.
    pub fn host_on(listener: TcpListener, address: &str, timeout: Duration) -> Result<Self> {
        let refused = |source| Error::Listen { address: address.to_owned(), source };
        let port = listener.local_addr().map_err(refused)?.port();
        let inner = ffi::host_store(address, port, listener.into_raw_fd(), milliseconds(timeout))
            .during("serving the rendezvous store")?;
        Ok(Self { inner })
    }

    /// Connects to the store of another process within `timeout`, which then bounds every wait on it.
    ///
    /// # Errors
    /// [`Error::Timeout`] or [`Error::PeerLost`] if nothing answers.
    pub fn connect(host: &str, port: u16, timeout: Duration) -> Result<Self> {
        let inner = ffi::connect_store(host, port, milliseconds(timeout))
            .during("connecting to the rendezvous store")?;
        Ok(Self { inner })
    }

    /// A view of the store with `prefix` before every key, so that attempts and groups never interfere.
    ///
    /// # Errors
    /// [`Error::Torch`] if memory runs out.
    pub fn prefixed(&self, prefix: &str) -> Result<Self> {
        let inner = self.inner.prefixed(prefix).during("scoping the rendezvous store")?;
        Ok(Self { inner })
    }

    /// The port on which the store is served.
    pub fn port(&self) -> u16 {
        self.inner.port()
    }

    /// Sets `key` and wakes all its waiters.
    ///
    /// # Errors
    /// [`Error::PeerLost`] if the host is gone.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        self.inner.set(key, value).during("writing to the rendezvous store")
    }

    /// Waits for `key` and returns its value.
    ///
    /// # Errors
    /// [`Error::Timeout`] if the key is not set in time; [`Error::PeerLost`] if the host is gone.
    pub fn get(&self, key: &str) -> Result<Vec<u8>> {
        self.inner.get(key).during("reading from the rendezvous store")
    }

    /// Adds `amount` to the counter `key`, which starts at 0, and returns the sum.
    ///
    /// # Errors
    /// [`Error::PeerLost`] if the host is gone.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64> {
        self.inner.add(key, amount).during("counting in the rendezvous store")
    }

    /// Waits until `key` is set, at most for `timeout`.
    ///
    /// # Errors
    /// [`Error::Timeout`] if the key is not set in time; [`Error::PeerLost`] if the host is gone.
    pub fn wait(&self, key: &str, timeout: Duration) -> Result<()> {
        self.inner.wait(key, milliseconds(timeout)).during("waiting on the rendezvous store")
    }

    pub(crate) fn inner(&self) -> &ffi::Store {
        &self.inner
    }
}

/// Whole milliseconds, at least one: c10d treats zero as "no timeout".
pub(crate) fn milliseconds(timeout: Duration) -> u64 {
    // c10d adds timeouts to the clock in nanoseconds; a century does not overflow.
    const CENTURY_MS: u128 = 100 * 365 * 24 * 3600 * 1000;
    u64::try_from(timeout.as_millis().clamp(1, CENTURY_MS)).unwrap_or(1)
}
