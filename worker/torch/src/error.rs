//! Errors, with advice in their messages.

use std::net::TcpListener;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed collective, rendezvous or tensor call.
///
/// After [`Error::Timeout`], [`Error::PeerLost`] or [`Error::Torch`] the group is unusable: its ranks may be
/// at different collectives. End the attempt on all ranks and start a new one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A timeout while waiting for peers.
    #[error(
        "{operation} timed out: {detail}. A peer is missing, dead, hung or slower than the timeout: \
         end this attempt on every rank and start a new one, or allow more time"
    )]
    Timeout {
        /// The operation that failed.
        operation: &'static str,
        /// c10d's message.
        detail: String,
    },
    /// A connection to a peer broke.
    #[error("{operation} lost a peer: {detail}. End this attempt on every rank and start a new one")]
    PeerLost {
        /// The operation that failed.
        operation: &'static str,
        /// c10d's message.
        detail: String,
    },
    /// A peer's address cannot be reached from this machine.
    #[error(
        "rank {peer} cannot be reached at {address}: {source}. Start foil-worker on its machine with --advertise-address \
         and an address that this machine can connect to, and check firewalls between them"
    )]
    Unreachable {
        /// Rank of the peer.
        peer: usize,
        /// The address that was tried.
        address: String,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// Cannot listen on an address of this machine.
    #[error(
        "cannot listen on {address}: {source}. Give an address of one of this machine's interfaces \
         that its peers can reach"
    )]
    Listen {
        /// The requested address.
        address: String,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// All ports to listen on are taken.
    #[error(
        "cannot listen on {address}: all ports of {ports} are in use. Widen --rendezvous-ports of foil-worker: each rank \
         of a machine needs one, and the first of a job two"
    )]
    NoFreePort {
        /// The requested address.
        address: String,
        /// The requested ports.
        ports: String,
    },
    /// NCCL was requested but this build has none.
    #[error(
        "this build has no NCCL: its libtorch has no CUDA, or CUDA's and NCCL's headers were missing. \
         Use Gloo on CPU, or run scripts/setup and build again"
    )]
    NcclMissing,
    /// NCCL was requested but no GPU is visible.
    #[error(
        "NCCL needs a CUDA device and this process sees none: use Gloo on CPU, or check CUDA_VISIBLE_DEVICES and the driver"
    )]
    NoCudaDevice,
    /// An invalid argument; nothing was sent.
    #[error("{operation}: found {found}, expected {expected}")]
    Argument {
        /// The operation that failed.
        operation: &'static str,
        /// The argument.
        found: String,
        /// Expectation of the call.
        expected: String,
    },
    /// Some parameters got no gradient in a backward pass, so their bucket was never reduced.
    #[error(
        "backward did not reach every parameter: {detail}. Add `Reducer::zero_loss` to the loss if parameters may be \
         unused; this attempt cannot continue"
    )]
    Unreduced {
        /// c10d's message, which names the parameters by position.
        detail: String,
    },
    /// libtorch failed for another reason.
    #[error("{operation} failed in libtorch: {detail}")]
    Torch {
        /// The operation that failed.
        operation: &'static str,
        /// libtorch's message.
        detail: String,
    },
}

impl Error {
    /// Whether a peer caused the error, so that the same call may succeed in a new attempt.
    pub fn is_peer(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::PeerLost { .. })
    }

    /// The error for an exception described by `describe_exception` on the C++ side.
    pub(crate) fn caught(operation: &'static str, exception: &cxx::Exception) -> Self {
        let what = exception.what();
        let (kind, detail) = what.split_at_checked(1).unwrap_or(("O", what));
        let detail = detail.trim().to_owned();
        match kind {
            "T" => Self::Timeout { operation, detail },
            "P" => Self::PeerLost { operation, detail },
            _ => Self::Torch { operation, detail },
        }
    }

    pub(crate) fn argument(
        operation: &'static str,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self::Argument { operation, found: found.into(), expected: expected.into() }
    }
}

/// A listening socket on `address` with a free port.
pub(crate) fn listen(address: &str) -> Result<TcpListener> {
    TcpListener::bind((address, 0)).map_err(|source| Error::Listen { address: address.to_owned(), source })
}

/// Turns a caught C++ exception into an [`Error`] that names the operation.
pub(crate) trait During<T> {
    fn during(self, operation: &'static str) -> Result<T>;
}

impl<T> During<T> for Result<T, cxx::Exception> {
    fn during(self, operation: &'static str) -> Result<T> {
        self.map_err(|exception| Error::caught(operation, &exception))
    }
}
