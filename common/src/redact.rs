//! Redaction of secrets in logs and errors.
//!
//! A store's URL may hold a password or a signature, and errors of its client quote the URL.

use std::borrow::Cow;
use std::io;

use tracing_subscriber::fmt::MakeWriter;

/// Replaces a secret.
const HIDDEN: &str = "…";

/// Names of settings in the environment and in URLs whose values are secrets.
const NAMES: [&str; 12] = [
    "secret_access_key",
    "access_key_id",
    "session_token",
    "sas_token",
    "sas_key",
    "account_key",
    "service_account_key",
    "client_secret",
    "password",
    "x-amz-signature",
    "x-amz-security-token",
    "x-amz-credential",
];

/// The text without secrets: URLs lose their user information, query and fragment, and settings known to hold
/// secrets lose their values.
pub fn secrets(text: &str) -> Cow<'_, str> {
    match urls(text) {
        Cow::Borrowed(text) => values(text),
        Cow::Owned(text) => Cow::Owned(values(&text).into_owned()),
    }
}

fn urls(text: &str) -> Cow<'_, str> {
    const MARK: &str = "://";
    if !text.contains(MARK) {
        return Cow::Borrowed(text);
    }
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find(MARK) {
        let (before, behind) = rest.split_at(at + MARK.len());
        let url = &behind[..behind.find(ends_url).unwrap_or(behind.len())];
        shown.push_str(before);
        show_url(url, &mut shown);
        rest = &behind[url.len()..];
    }
    shown.push_str(rest);
    Cow::Owned(shown)
}

fn ends_url(c: char) -> bool {
    c.is_whitespace() || c.is_control() || "\"'`<>(){}|\\".contains(c)
}

/// Appends the part of a URL after its scheme without secrets.
fn show_url(url: &str, shown: &mut String) {
    let authority = url.find(['/', '?', '#']).unwrap_or(url.len());
    let (authority, path) = url.split_at(authority);
    match authority.rsplit_once('@') {
        Some((_, host)) => shown.extend([HIDDEN, "@", host]),
        None => shown.push_str(authority),
    }
    match path.find(['?', '#']) {
        Some(at) => shown.extend([&path[..=at], HIDDEN]),
        None => shown.push_str(path),
    }
}

fn values(text: &str) -> Cow<'_, str> {
    let lower = text.to_ascii_lowercase();
    let mut spans: Vec<(usize, usize)> = NAMES
        .iter()
        .flat_map(|name| lower.match_indices(name).map(|(at, name)| at + name.len()))
        .filter_map(|end| value(text, end))
        .collect();
    if spans.is_empty() {
        return Cow::Borrowed(text);
    }
    spans.sort_unstable();
    let (mut shown, mut from) = (String::new(), 0);
    for (start, end) in spans {
        if start >= from {
            shown.extend([&text[from..start], HIDDEN]);
            from = end;
        }
    }
    shown.push_str(&text[from..]);
    Cow::Owned(shown)
}

/// The range of the value of a setting whose name ends at `end`: after a separator, in quotes or not.
fn value(text: &str, end: usize) -> Option<(usize, usize)> {
    let rest = text[end..].trim_start_matches(['"', '\'', '\\']);
    let rest = rest.trim_start().strip_prefix(['=', ':'])?.trim_start().trim_start_matches(['"', '\'', '\\']);
    let length = rest.find(|c: char| ends_url(c) || "&,;".contains(c)).unwrap_or(rest.len());
    let start = text.len() - rest.len();
    (length > 0).then_some((start, start + length))
}

/// A log writer that redacts every line, whatever its origin.
#[derive(Debug, Clone)]
pub struct Redacting<W>(pub W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Redacting<W> {
    type Writer = RedactingWriter<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        RedactingWriter(self.0.make_writer())
    }
}

/// Redacts one write, which is a whole line of the subscriber.
#[derive(Debug)]
pub struct RedactingWriter<W>(W);

impl<W: io::Write> io::Write for RedactingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        self.0.write_all(secrets(&text).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn urls_lose_their_secrets_and_keep_the_rest() {
        for (text, shown) in [
            ("s3://key:secret@bucket/p?sig=abc", "s3://…@bucket/p?…"),
            ("memory:///x?sig=S4STOKEN", "memory:///x?…"),
            ("az://c/p#frag", "az://c/p#…"),
            (
                "error for url (https://a.b/c?X-Amz-Signature=ff&x=1): timed out",
                "error for url (https://a.b/c?…): timed out",
            ),
            (r#"{"store":"https://u:p@h/x?sv=1","n":3}"#, r#"{"store":"https://…@h/x?…","n":3}"#),
            ("two: http://a?b and http://c@d/e", "two: http://a?… and http://…@d/e"),
            ("https://host:81/path is reached", "https://host:81/path is reached"),
            ("a://b@c@d", "a://…@d"),
            ("nothing here", "nothing here"),
            ("http://", "http://"),
            ("ü http://ü?ü ü", "ü http://ü?… ü"),
        ] {
            assert_eq!(secrets(text), shown);
        }
    }

    #[test]
    fn settings_that_hold_secrets_lose_their_values() {
        for (text, shown) in [
            ("AWS_SECRET_ACCESS_KEY=abc/def+ next", "AWS_SECRET_ACCESS_KEY=… next"),
            ("AZURE_STORAGE_ACCOUNT_KEY: \"abc==\", x", "AZURE_STORAGE_ACCOUNT_KEY: \"…\", x"),
            (r#"{"aws_session_token":"abc"}"#, r#"{"aws_session_token":"…"}"#),
            (r#"{"message":"{\"password\":\"abc\"}"}"#, r#"{"message":"{\"password\":\"…\"}"}"#),
            ("eos_token=</s> tokens=9", "eos_token=</s> tokens=9"),
            ("set AWS_SECRET_ACCESS_KEY first", "set AWS_SECRET_ACCESS_KEY first"),
        ] {
            assert_eq!(secrets(text), shown);
        }
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_line_of_a_log_shows_a_secret() {
        let sink = Sink::default();
        let lines = sink.clone();
        let writer = Redacting(move || sink.clone());
        let subscriber = tracing_subscriber::fmt().with_ansi(true).with_writer(writer).finish();
        tracing::subscriber::with_default(subscriber, || {
            let url = "az://c/p?sig=S4STOKEN";
            let _span = tracing::info_span!("job", store = url).entered();
            tracing::info!(store = url, "serving");
            tracing::warn!("cannot read {url}: see {url}");
            tracing::error!(error = ?Err::<(), _>(url), "AWS_SECRET_ACCESS_KEY=S4STOKEN");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(!text.contains("S4STOKEN") && text.contains("serving"), "{text}");
        assert_eq!(text.lines().count(), 3);
    }
}
