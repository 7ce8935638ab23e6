//! What can go wrong, and what to do about it.

use std::net::TcpListener;

/// This crate's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed collective, rendezvous or tensor call.
///
/// After [`Error::Timeout`], [`Error::PeerLost`] or [`Error::Torch`] the group it came from is of no more use: its
/// ranks may stand at different collectives. End the attempt on all ranks and start a new one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Time ran out while waiting for peers.
    #[error(
        "{operation} timed out: {detail}. A peer is missing, dead, hung or slower than the time-out: \
         end this attempt on every rank and start a new one, or allow more time"
    )]
    Timeout {
        /// What was being done.
        operation: &'static str,
        /// c10d's words.
        detail: String,
    },
    /// A connection to a peer broke.
    #[error("{operation} lost a peer: {detail}. End this attempt on every rank and start a new one")]
    PeerLost {
        /// What was being done.
        operation: &'static str,
        /// c10d's words.
        detail: String,
    },
    /// A peer's address leads nowhere from this machine.
    #[error(
        "rank {peer} cannot be reached at {address}: {source}. Start foil-worker on its machine with --advertise-address \
         and an address that this machine can connect to, and let no firewall stand between them"
    )]
    Unreachable {
        /// Its rank.
        peer: usize,
        /// Where it was looked for.
        address: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// No socket could be had on an address of this machine.
    #[error(
        "cannot listen on {address}: {source}. Give an address that one of this machine's interfaces carries \
         and that its peers can reach"
    )]
    Listen {
        /// The address asked for.
        address: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// NCCL was asked for and this build has none.
    #[error(
        "this build has no NCCL: its libtorch has no CUDA, or CUDA's and NCCL's headers were not beside it. \
         Use Gloo on CPU, or run scripts/setup and build again"
    )]
    NcclMissing,
    /// NCCL was asked for and no GPU is to be seen.
    #[error(
        "NCCL needs a CUDA device and this process sees none: use Gloo on CPU, or check CUDA_VISIBLE_DEVICES and the driver"
    )]
    NoCudaDevice,
    /// A call was made with something it cannot take; nothing was sent.
    #[error("{operation}: found {found}, expected {expected}")]
    Argument {
        /// What was being done.
        operation: &'static str,
        /// What the call got.
        found: String,
        /// What it takes.
        expected: String,
    },
    /// A backward pass ended and some parameters got no gradient, so their bucket was never reduced.
    #[error(
        "backward did not reach every parameter: {detail}. Add `Reducer::zero_loss` to the loss where parameters may go \
         unused; this attempt cannot go on"
    )]
    Unreduced {
        /// c10d's words, which name the parameters by position.
        detail: String,
    },
    /// libtorch refused or failed for another reason.
    #[error("{operation} failed in libtorch: {detail}")]
    Torch {
        /// What was being done.
        operation: &'static str,
        /// libtorch's words.
        detail: String,
    },
}

impl Error {
    /// Whether peers are the cause: the same call may succeed in a new attempt.
    pub fn is_peer(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::PeerLost { .. })
    }

    /// The error value for an exception described by the C++ side's `describe_exception`.
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

/// A listening socket on `address` at `port`, or at one of the system's choice for 0.
pub(crate) fn listen(address: &str, port: u16) -> Result<TcpListener> {
    TcpListener::bind((address, port)).map_err(|source| Error::Listen { address: address.to_owned(), source })
}

/// Turns a caught C++ exception into an [`Error`] that says what was being done.
pub(crate) trait During<T> {
    fn during(self, operation: &'static str) -> Result<T>;
}

impl<T> During<T> for Result<T, cxx::Exception> {
    fn during(self, operation: &'static str) -> Result<T> {
        self.map_err(|exception| Error::caught(operation, &exception))
    }
}
