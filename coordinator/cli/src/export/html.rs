//! The web UI's page with its data embedded.

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use foil_coordinator::web::assets::{APP_CSS, APP_JS, INDEX_HTML};
use foil_proto::v1;
use ring::digest::{SHA256, digest};

/// Parts of the page that a report replaces. Each occurs once.
const HEAD: &str = "<head>";
const STYLE: &str = r#"<link rel="stylesheet" href="/app.css">"#;
const SCRIPT: &str = r#"<script src="/app.js" defer></script>"#;
const DATA: &str = "<!--foil-report-->";

/// One file that opens without a network. Its content security policy allows only its own script and style,
/// so that a completion's text is always data.
pub(super) fn page(report: &v1::Report) -> Result<String> {
    let data = escaped(&serde_json::to_string(report)?);
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; base-uri 'none'; form-action 'none'",
        hash(APP_JS),
        hash(APP_CSS)
    );
    // From the end to the start, so that inserted text is never searched.
    let (rest, tail) = split(INDEX_HTML, SCRIPT)?;
    let (rest, between) = split(rest, DATA)?;
    let (rest, body) = split(rest, STYLE)?;
    let (start, head) = split(rest, HEAD)?;
    Ok([
        start,
        HEAD,
        "\n<meta http-equiv=\"content-security-policy\" content=\"",
        &policy,
        "\">",
        head,
        "<style>",
        APP_CSS,
        "</style>",
        body,
        "<script type=\"application/json\" id=\"foil-report\">",
        &data,
        "</script>",
        between,
        "<script>",
        APP_JS,
        "</script>",
        tail,
    ]
    .concat())
}

fn split<'a>(page: &'a str, mark: &str) -> Result<(&'a str, &'a str)> {
    page.split_once(mark).with_context(|| format!("the page has no {mark}; this is a fault of foil's build"))
}

/// JSON whose texts can neither end the block that they are in nor begin a comment or an entity.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len() + json.len() / 16);
    for character in json.chars() {
        match character {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                text.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            other => text.push(other),
        }
    }
    text
}

/// A content security policy source that allows this content alone.
pub(crate) fn hash(content: &str) -> String {
    format!("sha256-{}", STANDARD.encode(digest(&SHA256, content.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str =
        "</script><script>alert(1)</script><!-- &lt; \u{2028}\u{202e}]]> \u{0}\\\" </SCRIPT";

    fn report() -> v1::Report {
        let completion = v1::Completion {
            text: Some(v1::Text { text: HOSTILE.to_owned(), bytes: HOSTILE.len() as u64 }),
            ..Default::default()
        };
        let row = v1::CompletionRow { completions: vec![completion], ..Default::default() };
        let page = v1::ListCompletionsResponse { rows: vec![row], ..Default::default() };
        let completions = vec![v1::CompletionReport { set: 1, page: Some(page) }];
        let run = v1::RunReport { arm: HOSTILE.to_owned(), completions, ..Default::default() };
        v1::Report { title: HOSTILE.to_owned(), runs: vec![run], ..Default::default() }
    }

    /// The text between two marks.
    fn between<'a>(page: &'a str, start: &str, end: &str) -> &'a str {
        page.split_once(start).unwrap().1.split_once(end).unwrap().0
    }

    #[test]
    fn no_text_of_a_sample_leaves_its_block() {
        let page = page(&report()).unwrap();
        let data = between(&page, "id=\"foil-report\">", "</script>");
        assert!(!data.contains(['<', '>', '&', '\u{2028}']), "{data}");
        let read: v1::Report = serde_json::from_str(data).unwrap();
        assert_eq!(read, report(), "the data is complete");
        assert_eq!(page.matches("<script").count() - APP_JS.matches("<script").count(), 2);
        assert_eq!(page.matches("</script").count(), 2);
    }

    #[test]
    fn the_policy_names_the_script_and_the_style_that_are_in_the_page() {
        let page = page(&report()).unwrap();
        let policy = between(&page, "content-security-policy\" content=\"", "\">");
        for (start, end, directive) in
            [("<style>", "</style>", "style-src"), ("<script>", "</script>", "script-src")]
        {
            let inline = between(&page, start, end);
            let expected = format!("{directive} '{}';", hash(inline));
            assert!(policy.contains(&expected), "{policy} lacks {expected}");
        }
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"));
        let head = page.split_once("<meta http-equiv").unwrap().0;
        assert!(!head.contains("<style") && !head.contains("<script"), "the policy comes first");
        assert!(!page.contains("href=\"/") && !page.contains("src=\"/"), "nothing is loaded");
        // The hash of the empty text, as every implementation computes it.
        assert_eq!(hash(""), "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
    }
}
