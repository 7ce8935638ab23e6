//! Requests to trackers' servers, with bounds on everything that a server can cause: redirects are not
//! followed, responses have a size limit, and requests have a timeout.

use std::time::Duration;

use foil_common::redact;
use foil_common::version::VERSION;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, RequestBuilder, StatusCode};
use serde_json::Value;

use super::config::{Credential, Pem};
use crate::lease::Lease;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of a request, including its response.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Size limit of a response.
const ANSWER_BYTES: usize = 8 << 20;
/// Size limit of a server's own text in a message.
const WORDS_BYTES: usize = 300;

/// Why something could not be delivered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub(super) struct Failure {
    /// Message for users and operators: without secrets, on a single line.
    pub(super) why: String,
    pub(super) kind: FailureKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The tracker is unavailable, slow or overloaded.
    Away,
    /// The tracker rejects the data; an operator must intervene.
    Refused,
    /// This coordinator has stopped leading, or the job does not exist any more; the tracker is fine.
    Obsolete,
    /// The store or the driver failed.
    Own,
}

impl Failure {
    pub(super) fn new(kind: FailureKind, why: impl Into<String>) -> Self {
        let why: String = why.into();
        let one_line = why.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
        Self { why: one_line, kind }
    }

    pub(super) fn obsolete() -> Self {
        Self::new(FailureKind::Obsolete, "this coordinator does not lead any more, or the job is gone")
    }
}

/// A tracker's server.
#[derive(Debug, Clone)]
pub(super) struct Server {
    client: Client,
    /// Product name, for messages.
    name: &'static str,
    credential: Option<Credential>,
}

/// A complete response.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Value,
}

impl Server {
    /// # Errors
    /// The certificates cannot be used.
    pub(super) fn new(
        name: &'static str,
        ca: Option<&Pem>,
        credential: Option<Credential>,
    ) -> Result<Self, String> {
        // A redirect could lead to hosts that only this machine can reach, and would carry the credential.
        let mut builder = Client::builder()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .user_agent(format!("foil/{VERSION}"));
        if let Some(Pem(pem)) = ca {
            let certificates = Certificate::from_pem_bundle(pem).map_err(|error| error.to_string())?;
            builder = builder.tls_certs_only(certificates);
        }
        let client = builder.build().map_err(|error| error.to_string())?;
        Ok(Self { client, name, credential })
    }

    /// The same server with another credential.
    pub(super) fn with_credential(&self, credential: Credential) -> Self {
        Self { credential: Some(credential), ..self.clone() }
    }

    pub(super) fn get(&self, url: &str) -> RequestBuilder {
        self.client.get(url)
    }

    pub(super) fn post(&self, url: &str, body: &Value) -> RequestBuilder {
        with_json(self.client.post(url), body)
    }

    pub(super) fn put(&self, url: &str, body: &Value) -> RequestBuilder {
        with_json(self.client.put(url), body)
    }

    /// Sends a request, provided that this coordinator certainly leads.
    pub(super) async fn send(&self, request: RequestBuilder, lease: &Lease) -> Result<Answer, Failure> {
        if !lease.is_valid() {
            return Err(Failure::obsolete());
        }
        let request = match &self.credential {
            Some(Credential::Token(token)) => request.bearer_auth(token),
            Some(Credential::Password { user, password }) => request.basic_auth(user, Some(password)),
            None => request,
        };
        tokio::select! {
            answer = self.answer(request) => answer,
            // The next leader asks the server what has arrived; nothing may arrive after that.
            () = lease.expired() => Err(Failure::obsolete()),
        }
    }

    async fn answer(&self, request: RequestBuilder) -> Result<Answer, Failure> {
        let mut response = request.send().await.map_err(|error| self.away(error))?;
        let status = response.status();
        if status.is_redirection() {
            let why = format!(
                "{} answers {status}, a redirection, which is not followed; give the address that it leads to",
                self.name
            );
            return Err(Failure::new(FailureKind::Refused, why));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.away(error))? {
            if body.len() + chunk.len() > ANSWER_BYTES {
                let why = format!("{}'s answer is larger than {ANSWER_BYTES} bytes", self.name);
                return Err(Failure::new(FailureKind::Refused, why));
            }
            body.extend_from_slice(&chunk);
        }
        let parsed = if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&body) };
        match parsed {
            Ok(body) => Ok(Answer { status, body }),
            // Proxies answer in HTML; the status is then sufficient.
            Err(_) if !status.is_success() => Ok(Answer { status, body: Value::Null }),
            Err(_) => {
                let why = format!("{}'s answer is not JSON; is this the address of its API?", self.name);
                Err(Failure::new(FailureKind::Refused, why))
            }
        }
    }

    fn away(&self, error: reqwest::Error) -> Failure {
        if error.is_timeout() {
            return Failure::new(FailureKind::Away, format!("{} does not answer in time", self.name));
        }
        // The useful cause, such as a refused connection or a certificate error, is the innermost one.
        let error = error.without_url();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        let why = format!("{} cannot be reached: {cause}", self.name);
        Failure::new(FailureKind::Away, self.shown(&why))
    }

    /// The failure for a response's status, including the server's own message.
    pub(super) fn refusal(&self, answer: &Answer, advice: &str) -> Failure {
        let words = answer.body["message"].as_str().unwrap_or_default();
        let words = &words[..words.floor_char_boundary(WORDS_BYTES)];
        let colon = if words.is_empty() { "" } else { ": " };
        let status = answer.status;
        let (kind, advice) = match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => (FailureKind::Away, String::new()),
            status if status.is_server_error() => (FailureKind::Away, String::new()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => (FailureKind::Refused, format!("; {advice}")),
            _ => (FailureKind::Refused, String::new()),
        };
        let why = format!("{} answers {status}{colon}{words}{advice}", self.name);
        Failure::new(kind, self.shown(&why))
    }

    /// The text with secrets removed, whatever its origin.
    fn shown(&self, text: &str) -> String {
        let mut text = redact::secrets(text).into_owned();
        for secret in self.credential.iter().flat_map(Credential::secrets).filter(|secret| !secret.is_empty())
        {
            text = text.replace(secret, "…");
        }
        text
    }
}

fn with_json(request: RequestBuilder, body: &Value) -> RequestBuilder {
    let json = HeaderValue::from_static("application/json");
    request.header(CONTENT_TYPE, json).body(body.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::body::Body;
    use axum::http::{Response, StatusCode};
    use tokio::net::TcpListener;

    use super::*;
    use crate::clock::Clock;

    fn lease(seconds: u64) -> Lease {
        let clock = Clock::start();
        Lease::new(clock, clock.now().mono + Duration::from_secs(seconds))
    }

    /// A server that gives the same answer to every request, and the number of its requests.
    async fn server(
        status: u16,
        header: (&'static str, &'static str),
        body: Vec<u8>,
    ) -> (String, Arc<AtomicUsize>) {
        let requests = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&requests);
        let answer = move || {
            seen.fetch_add(1, Ordering::Relaxed);
            let response = Response::builder().status(StatusCode::from_u16(status).unwrap());
            let response = response.header(header.0, header.1).body(Body::from(body.clone())).unwrap();
            async move { response }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        (url, requests)
    }

    async fn ask(url: &str) -> Result<Answer, Failure> {
        let server = Server::new("MLflow", None, Some(Credential::Token("hunter2".into()))).unwrap();
        server.send(server.get(url), &lease(60)).await
    }

    const PLAIN: (&str, &str) = ("x-plain", "yes");

    #[tokio::test]
    async fn redirections_are_not_followed() {
        let (target, reached) = server(200, PLAIN, b"{}".to_vec()).await;
        let location: &'static str = target.leak();
        let (url, _) = server(302, ("location", location), Vec::new()).await;
        let failure = ask(&url).await.unwrap_err();
        assert!(failure.why.contains("redirection") && failure.kind == FailureKind::Refused, "{failure}");
        assert_eq!(reached.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn answers_are_bounded_and_nonsense_is_named() {
        let (url, _) = server(200, PLAIN, vec![b' '; ANSWER_BYTES + 1]).await;
        assert!(ask(&url).await.unwrap_err().why.contains("larger than"));
        let (url, _) = server(200, PLAIN, b"<html>".to_vec()).await;
        assert!(ask(&url).await.unwrap_err().why.contains("is not JSON"));
        let (url, _) = server(502, PLAIN, b"<html>".to_vec()).await;
        assert_eq!(ask(&url).await.unwrap().status, StatusCode::BAD_GATEWAY);
        let away = ask("http://127.0.0.1:1").await.unwrap_err();
        assert!(away.kind == FailureKind::Away && away.why.contains("cannot be reached"), "{away}");
    }

    #[tokio::test]
    async fn what_a_server_says_is_told_on_one_line_without_secrets() {
        let words = r#"{"message":"no\nsuch token hunter2 at https://me:secret@host/x"}"#;
        let (url, _) = server(403, PLAIN, words.as_bytes().to_vec()).await;
        let server = Server::new("MLflow", None, Some(Credential::Token("hunter2".into()))).unwrap();
        let answer = server.send(server.get(&url), &lease(60)).await.unwrap();
        let failure = server.refusal(&answer, "check MLFLOW_TRACKING_TOKEN");
        assert_eq!(
            failure.why,
            "MLflow answers 403 Forbidden: no such token … at https://…@host/x; check MLFLOW_TRACKING_TOKEN"
        );
    }

    #[tokio::test]
    async fn nothing_is_sent_once_another_may_lead() {
        let (url, requests) = server(200, PLAIN, b"{}".to_vec()).await;
        let server = Server::new("MLflow", None, None).unwrap();
        let failure = server.send(server.get(&url), &lease(0)).await.unwrap_err();
        assert_eq!((failure.kind, requests.load(Ordering::Relaxed)), (FailureKind::Obsolete, 0));
    }
}
