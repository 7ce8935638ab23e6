/// A rank's message that violates the protocol; its stream is closed with this error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("session {session} is not one of attempt {attempt}'s; this process is stale and must exit")]
    Stale { session: String, attempt: u32 },
    #[error("{0}")]
    Invalid(String),
    /// The message is well-formed but false.
    #[error("{0}")]
    FalseReport(String),
    #[error("this peer does not prove that it is the process of session {session}")]
    Unauthenticated { session: String },
}
