//! The files of the web UI, as built. They contain no data and need no authentication: the page gets its data
//! from the gRPC services with its user's credentials.

use std::sync::LazyLock;

use axum::Router;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// The page.
pub const INDEX_HTML: &str = include_str!("../../ui/dist/index.html");
pub const APP_JS: &str = include_str!("../../ui/dist/app.js");
pub const APP_CSS: &str = include_str!("../../ui/dist/app.css");

/// Paths of the page, which decides by the path what to show, and of its files. Paths below `/jobs/` are
/// pages too.
pub const PATHS: [&str; 4] = ["/", "/workers", "/app.js", "/app.css"];
pub const JOB_PATHS: &str = "/jobs/";

/// The page loads files and sends requests only within its own origin. Nothing is inline, so that no text of
/// a completion can become a script.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Headers of every file.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    // Revalidated each time, because a new version of the coordinator has a new page.
    (header::CACHE_CONTROL, "no-cache"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// A file with its entity tag, by which a browser recognizes a cached copy.
struct Asset {
    kind: &'static str,
    content: &'static str,
    tag: String,
}

impl Asset {
    fn new(kind: &'static str, content: &'static str) -> Self {
        let hash = blake3::hash(content.as_bytes()).to_hex();
        Self { kind, content, tag: format!("\"{}\"", &hash[..32]) }
    }

    fn answer(&self, request: &HeaderMap) -> Response {
        let known = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|tags| tags.to_str().ok());
        let mut tags = known.flat_map(|tags| tags.split(','));
        let is_known = tags.any(|tag| tag.trim().trim_start_matches("W/") == self.tag || tag.trim() == "*");
        let mut response = match is_known {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => ([(header::CONTENT_TYPE, self.kind)], self.content).into_response(),
        };
        let headers = response.headers_mut();
        headers.extend(HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value))));
        if let Ok(tag) = HeaderValue::from_str(&self.tag) {
            headers.insert(header::ETAG, tag);
        }
        response
    }
}

static INDEX: LazyLock<Asset> = LazyLock::new(|| Asset::new("text/html; charset=utf-8", INDEX_HTML));
static SCRIPT: LazyLock<Asset> = LazyLock::new(|| Asset::new("text/javascript; charset=utf-8", APP_JS));
static STYLE: LazyLock<Asset> = LazyLock::new(|| Asset::new("text/css; charset=utf-8", APP_CSS));

/// The page and its files.
pub(super) fn router() -> Router {
    let page = || get(|headers: HeaderMap| async move { INDEX.answer(&headers) });
    Router::new()
        .route("/", page())
        .route("/workers", page())
        .route("/jobs/{*job}", page())
        .route("/app.js", get(|headers: HeaderMap| async move { SCRIPT.answer(&headers) }))
        .route("/app.css", get(|headers: HeaderMap| async move { STYLE.answer(&headers) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(tags: &str) -> Response {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, tags.parse().unwrap());
        INDEX.answer(&headers)
    }

    #[test]
    fn a_file_that_a_browser_has_is_not_sent_again() {
        let fresh = INDEX.answer(&HeaderMap::new());
        assert!(fresh.status() == StatusCode::OK && fresh.headers()[header::ETAG] == INDEX.tag);
        for tags in [INDEX.tag.clone(), format!("\"x\", W/{}", INDEX.tag), "*".to_owned()] {
            let answer = asked(&tags);
            assert_eq!(answer.status(), StatusCode::NOT_MODIFIED, "{tags}");
            assert!(answer.headers().contains_key(header::CONTENT_SECURITY_POLICY));
        }
        assert_eq!(asked("\"x\"").status(), StatusCode::OK);
        assert_ne!(INDEX.tag, SCRIPT.tag);
    }

    #[test]
    fn nothing_in_the_page_is_inline_or_from_elsewhere() {
        // Constructs that the content security policy blocks, so the page must not use them.
        for forbidden in ["<style", "style=", "<script>", "onload=", "onclick=", "http-equiv", "//"] {
            let body = INDEX_HTML.replace("http://www.w3.org/2000/svg", "");
            assert!(!body.contains(forbidden), "index.html has {forbidden}");
        }
        // A report inlines these files: neither may contain the end of its own element.
        assert!(!APP_JS.contains("</script") && !APP_JS.contains("<!--") && !APP_CSS.contains("</style"));
    }
}
