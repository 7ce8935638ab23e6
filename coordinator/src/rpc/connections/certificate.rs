//! The certificate of a connection's client, which may be revoked while the connection is open.

use std::sync::{Mutex, PoisonError};

use foil_common::tls::{Changes, ServerTls};
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::auth::{Refusal, Subject};

/// A certificate that the handshake has verified.
#[derive(Debug)]
pub(in crate::rpc) struct ClientCertificate {
    subject: Subject,
    /// The certificate, followed by those of intermediate CAs.
    chain: Vec<CertificateDer<'static>>,
    tls: ServerTls,
    checked: Mutex<Checked>,
}

/// The last check, and the changes of TLS since.
#[derive(Debug)]
struct Checked {
    changes: Changes,
    outcome: Result<(), String>,
}

impl ClientCertificate {
    /// None if the client presented no certificate. `changes` are those since the handshake began.
    pub(super) fn new(chain: &[CertificateDer<'_>], tls: &ServerTls, changes: Changes) -> Option<Self> {
        let subject = Subject::of_certificate(chain.first()?);
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let checked = Mutex::new(Checked { changes, outcome: Ok(()) });
        Some(Self { subject, chain, tls: tls.clone(), checked })
    }

    /// The subject, unless the certificate was revoked since the handshake.
    pub(in crate::rpc) fn subject(&self) -> Result<&Subject, Refusal> {
        // Each change is complete in itself, so a panic elsewhere leaves no inconsistent state.
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if checked.changes.take() {
            checked.outcome = self.tls.check_client(&self.chain);
        }
        match &checked.outcome {
            Ok(()) => Ok(&self.subject),
            Err(problem) => Err(Refusal::Revoked(problem.clone())),
        }
    }

    /// Notified of each change after which the certificate may be revoked.
    pub(in crate::rpc) fn changes(&self) -> Changes {
        self.tls.changes()
    }
}
