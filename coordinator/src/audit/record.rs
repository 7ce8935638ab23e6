//! One line of the audit log.

use std::time::SystemTime;

use serde::Serialize;
use tonic::Code;

/// The outcome of a call, by the name of its gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Outcome {
    Ok,
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

impl Outcome {
    /// True if the caller itself was refused, not just its request.
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::Unauthenticated | Self::PermissionDenied)
    }
}

impl From<Code> for Outcome {
    fn from(code: Code) -> Self {
        match code {
            Code::Ok => Self::Ok,
            Code::Cancelled => Self::Cancelled,
            Code::Unknown => Self::Unknown,
            Code::InvalidArgument => Self::InvalidArgument,
            Code::DeadlineExceeded => Self::DeadlineExceeded,
            Code::NotFound => Self::NotFound,
            Code::AlreadyExists => Self::AlreadyExists,
            Code::PermissionDenied => Self::PermissionDenied,
            Code::ResourceExhausted => Self::ResourceExhausted,
            Code::FailedPrecondition => Self::FailedPrecondition,
            Code::Aborted => Self::Aborted,
            Code::OutOfRange => Self::OutOfRange,
            Code::Unimplemented => Self::Unimplemented,
            Code::Internal => Self::Internal,
            Code::Unavailable => Self::Unavailable,
            Code::DataLoss => Self::DataLoss,
            Code::Unauthenticated => Self::Unauthenticated,
        }
    }
}

/// A call that changed something or was refused. The record contains no secrets, and nothing of the request
/// but names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// RFC 3339 in UTC, to the millisecond.
    pub time: String,
    /// The caller; empty if unknown.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub principal: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub role: &'static str,
    /// The proof that identified the caller.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub credential: &'static str,
    /// Address that the connection comes from.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub peer: String,
    /// The RPC, such as `/foil.v1.Jobs/Submit`, or the page.
    pub method: String,
    /// Name of the changed resource, such as `job/01m8…`; empty if the call did not get that far.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource: String,
    pub outcome: Outcome,
    /// Reason of the status' `ErrorInfo`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The client's id of the request.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub request_id: String,
    /// Number of refusals of unknown callers omitted before this record.
    #[serde(skip_serializing_if = "is_zero")]
    pub suppressed: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Record {
    /// A record of a call by an unknown caller.
    pub fn new(at: SystemTime, method: &str, outcome: Outcome) -> Self {
        Self {
            time: humantime::format_rfc3339_millis(at).to_string(),
            principal: String::new(),
            tenant: String::new(),
            role: "",
            credential: "",
            peer: String::new(),
            method: method.to_owned(),
            resource: String::new(),
            outcome,
            reason: String::new(),
            request_id: String::new(),
            suppressed: 0,
        }
    }

    /// The line, including its line break.
    pub(super) fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("a record is plain data");
        line.push(b'\n');
        line
    }
}
