//! `foil inspect --html`: one page that opens offline, without a script.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::Result;
use foil_common::plural::counted;
use foil_common::spec::Side;
use foil_common::text::inspect::Read;
use foil_common::version::VERSION;
use foil_coordinator::web::assets::APP_CSS;

use super::histogram;
use super::measure::Overlap;
use super::{Example, Inspection, SetReport};
use crate::card::escape::visible;
use crate::export::html::hash;

const OWN_CSS: &str = include_str!("page.css");
/// Maximum number of tokens of all examples together: a browser lays out an element for each.
const MOST_TOKENS: usize = 300_000;
/// Maximum number of warnings that are shown.
const MOST_WARNINGS: usize = 100;

const LEGEND: &str = "<ul class=\"inspect-legend\">\
    <li><span class=\"token\">prompt</span> context only</li>\
    <li><span class=\"token read-response\">response</span> read by the reward model</li>\
    <li><span class=\"token read-reward\">end</span> the reward is read here</li>\
    <li><span class=\"token read-loss\">trained on</span> the policy learns to predict it</li>\
    <li><span class=\"token named\">&lt;s&gt;</span> special token</li>\
    <li><span class=\"token part\">&lt;0xE2&gt;</span> part of a character</li>\
    <li><span class=\"cut\">5 tokens cut</span> what the models never see</li></ul>";

/// The page. Its content security policy lets nothing run and nothing load, so that the data's text stays
/// text.
pub(super) fn page(inspection: &Inspection) -> Result<String> {
    let style = format!("{APP_CSS}\n{OWN_CSS}");
    let policy = format!(
        "default-src 'none'; style-src '{}'; img-src data:; base-uri 'none'; form-action 'none'",
        hash(&style)
    );
    let name = html(&inspection.name);
    let mut body = format!("<h1>{name}</h1><p class=\"lead\">{}</p>", html(&inspection.outline));
    body += &warnings(&inspection.warnings);
    body += &models(inspection);
    body += &sets(&inspection.sets);
    body += &overlaps(&inspection.sets, &inspection.overlaps);
    let mut left = MOST_TOKENS;
    for set in &inspection.sets {
        body += &section(set, inspection.side, &mut left);
    }
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"content-security-policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"referrer\" content=\"no-referrer\">\n\
         <title>{name}: data</title>\n<style>{style}</style>\n</head>\n<body>\n\
         <header class=\"top\"><span class=\"brand\"><svg width=\"20\" height=\"20\" viewBox=\"0 0 32 32\" aria-hidden=\"true\">\
         <path class=\"blade-a\" d=\"M5 27 27 5\"/><path class=\"blade-b\" d=\"M27 27 5 5\"/></svg>Foil</span>\
         <span class=\"inspect-name\">data as the models read it</span></header>\n<main id=\"main\">{body}</main>\n\
         <footer class=\"foot\">foil inspect {VERSION}</footer>\n</body>\n</html>\n"
    ))
}

/// Escapes text so that it is not markup. Control characters and characters that reorder text become symbols;
/// line breaks are kept.
fn html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
        for character in visible(line).chars() {
            match character {
                '&' => escaped.push_str("&amp;"),
                '<' => escaped.push_str("&lt;"),
                '>' => escaped.push_str("&gt;"),
                '"' => escaped.push_str("&quot;"),
                '\'' => escaped.push_str("&#39;"),
                other => escaped.push(other),
            }
        }
        escaped.push_str(end);
    }
    escaped
}

fn warnings(warnings: &[String]) -> String {
    let shown = warnings.iter().take(MOST_WARNINGS);
    let mut text: String =
        shown.map(|warning| format!("<p class=\"note warning\">{}</p>", html(warning))).collect();
    if warnings.len() > MOST_WARNINGS {
        let _ = write!(
            text,
            "<p class=\"note warning\">and {}</p>",
            counted(warnings.len() - MOST_WARNINGS, "more warning")
        );
    }
    text
}

/// A section with a table in a card.
fn table(title: &str, class: &str, head: &[&str], rows: &str, note: &str) -> String {
    let head: String = head
        .iter()
        .enumerate()
        .map(|(at, name)| {
            format!("<th scope=\"col\"{}>{name}</th>", if at > 0 { " class=\"number\"" } else { "" })
        })
        .collect();
    let note = if note.is_empty() { String::new() } else { format!("<p class=\"table-note\">{note}</p>") };
    format!(
        "<section class=\"section {class}\"><div class=\"section-head\"><h2>{title}</h2></div><div class=\"card flush\">\
         <div class=\"scroll\"><table class=\"data\"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}</div></section>"
    )
}

fn models(inspection: &Inspection) -> String {
    let row = |model: &super::ModelReport| {
        let cells: String =
            model.tokens.iter().map(|token| format!("<td class=\"number\">{}</td>", html(token))).collect();
        format!(
            "<tr><th scope=\"row\">{} <bdi>{}</bdi></th><td class=\"number\">{}</td>{cells}</tr>",
            model.role,
            html(&model.name),
            model.vocabulary
        )
    };
    let rows: String = inspection.models.iter().map(row).collect();
    table("Models", "", &["model", "token ids", "BOS", "EOS", "pad"], &rows, "")
}

fn sets(sets: &[SetReport]) -> String {
    let row = |set: &SetReport| {
        let said = &set.repetitions;
        let mut text = format!("<tr><th scope=\"row\"><a href=\"#{0}\">{0}</a></th>", html(set.name));
        let numbers = [set.rows, set.bad_rows as usize, said.distinct_prompts, said.repeated_prompts];
        let _ = numbers.iter().try_for_each(|number| write!(text, "<td class=\"number\">{number}</td>"));
        let repeated = match said.responses {
            0 => "–".to_owned(),
            all => format!("{} <span class=\"share\">of {all}</span>", said.repeated_responses),
        };
        let cut: usize = set.measured.iter().map(|one| one.lengths.rows - one.lengths.fit).sum();
        let measured: usize = set.measured.iter().map(|one| one.lengths.rows).sum();
        let _ = write!(
            text,
            "<td class=\"number\">{repeated}</td><td class=\"number\">{cut} <span class=\"share\">of {measured}</span></td></tr>"
        );
        text
    };
    let rows: String = sets.iter().map(row).collect();
    let head = [
        "set",
        "rows",
        "bad rows",
        "distinct prompts",
        "repeated prompts",
        "repeated responses",
        "texts cut",
    ];
    let note = "Rows that equal an earlier one in all their texts are left out before they are counted. A repeated response \
                is given in an earlier row too, to whatever prompt.";
    table("Sets", "sets", &head, &rows, note)
}

/// A matrix of the sets that share prompts.
fn overlaps(sets: &[SetReport], overlaps: &[Overlap]) -> String {
    if overlaps.is_empty() {
        return "<section class=\"section\"><div class=\"section-head\"><h2>Overlap</h2></div>\
                <p class=\"card\">No two sets share a prompt.</p></section>"
            .to_owned();
    }
    let named: BTreeSet<&str> = overlaps.iter().flat_map(|overlap| [overlap.first, overlap.second]).collect();
    let shown: Vec<&SetReport> = sets.iter().filter(|set| named.contains(set.name)).collect();
    let cell = |row: &SetReport, column: &SetReport| {
        let is_one = |overlap: &&Overlap| {
            [(overlap.first, overlap.second), (overlap.second, overlap.first)]
                .contains(&(row.name, column.name))
        };
        match overlaps.iter().find(is_one) {
            _ if row.name == column.name => "<td class=\"number muted\">·</td>".to_owned(),
            None => "<td class=\"number\">0</td>".to_owned(),
            Some(overlap) => format!(
                "<td class=\"number\">{} <span class=\"share\">{:.0} %</span></td>",
                overlap.prompts,
                100.0 * overlap.prompts as f64 / row.repetitions.distinct_prompts.max(1) as f64
            ),
        }
    };
    let row = |row: &SetReport| {
        let cells: String = shown.iter().copied().map(|column| cell(row, column)).collect();
        format!("<tr><th scope=\"row\">{}</th>{cells}</tr>", html(row.name))
    };
    let rows: String = shown.iter().copied().map(row).collect();
    let names: Vec<String> = shown.iter().map(|set| html(set.name)).collect();
    let head: Vec<&str> =
        std::iter::once("prompts of … in …").chain(names.iter().map(String::as_str)).collect();
    let note = "Distinct prompts of the row's set that the column's set has too, and their share of the row's. Sets that share \
                none with any other are left out. What that means for the figures is said in the warnings.";
    table("Overlap", "", &head, &rows, note)
}

fn section(set: &SetReport, side: Side, left: &mut usize) -> String {
    let name = html(set.name);
    let mut text = format!(
        "<section class=\"section\" id=\"{name}\"><div class=\"section-head\"><h2>{name} <span class=\"unit\">{}</span></h2></div>",
        counted(set.rows, "row")
    );
    let lines = set.files.iter().chain(&set.ignored);
    let lines: Vec<String> = lines.map(|line| format!("<bdi>{}</bdi>", html(line.trim()))).collect();
    if !lines.is_empty() {
        let _ = write!(text, "<p class=\"sub\">{}</p>", lines.join("<br>"));
    }
    if let Some(accuracy) = &set.length_accuracy {
        let _ = write!(text, "<p class=\"note\">{}.</p>", html(&accuracy.to_string()));
    }
    let charts: String = set.measured.iter().map(histogram::card).collect();
    let _ = write!(text, "<div class=\"charts\">{charts}</div>");
    if !set.examples.is_empty() {
        let _ = write!(text, "<div class=\"section-head section\"><h3>Examples</h3></div>{LEGEND}");
    }
    for (at, shown) in set.examples.iter().enumerate() {
        match left.checked_sub(shown.view.tokens.len()) {
            Some(rest) => *left = rest,
            None => {
                let more = set.examples.len() - at;
                let _ = write!(
                    text,
                    "<p class=\"sub\">{more} further examples would make the page too large.</p>"
                );
                break;
            }
        }
        text += &example(shown, side, at < 4);
    }
    text + "</section>"
}

fn example(example: &Example, side: Side, is_open: bool) -> String {
    let view = &example.view;
    let (count, start) = (view.tokens.len(), view.response_start);
    let mut head = format!("{}: prompt {start}, response {}", counted(count, "token"), count - start);
    if view.eos {
        head += " with EOS";
    }
    if view.response_cut > 0 {
        head += ", unfinished";
    }
    let mut text = format!(
        "<details class=\"card example\"{}><summary><strong>{}</strong> <span class=\"muted\">{head}</span></summary>\
         <div class=\"token-text\" dir=\"auto\">",
        if is_open { " open" } else { "" },
        html(&example.title)
    );
    let prompt_cut = (view.prompt_cut > 0).then(|| cut(view.prompt_cut));
    if let Some(cut) = prompt_cut.as_ref().filter(|_| side == Side::Left) {
        text += cut;
    }
    for (at, (token, piece)) in view.tokens.iter().zip(&example.pieces).enumerate() {
        if at == start
            && let Some(cut) = prompt_cut.as_ref().filter(|_| side == Side::Right)
        {
            text += cut;
        }
        let (class, title) = match token.read {
            Read::Nothing => ("token", "prompt"),
            Read::Response => ("token read-response", "response"),
            Read::Loss => ("token read-loss", "trained on"),
            Read::Reward => ("token read-reward", "the reward is read here"),
        };
        let named = match (piece.is_special, piece.is_part) {
            (true, _) => " named",
            (_, true) => " part",
            _ => "",
        };
        let _ = write!(
            text,
            "<span class=\"{class}{named}\" title=\"#{at}, id {}, {title}\">{}</span>",
            token.id,
            html(&piece.text.replace('\n', "\u{23ce}\n"))
        );
    }
    if start == count
        && let Some(cut) = prompt_cut.as_ref().filter(|_| side == Side::Right)
    {
        text += cut;
    }
    if view.response_cut > 0 {
        text += &cut(view.response_cut);
    }
    text + "</div></details>"
}

fn cut(tokens: usize) -> String {
    format!("<span class=\"cut\">{} cut</span>", counted(tokens, "token"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_never_markup() {
        assert_eq!(
            html("<a href='x' title=\"y\">&</a>"),
            "&lt;a href=&#39;x&#39; title=&quot;y&quot;&gt;&amp;&lt;/a&gt;"
        );
        assert_eq!(html("a\nb\u{0}\u{202e}"), "a\nb␀⟨U+202E⟩");
    }
}
