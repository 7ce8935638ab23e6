//! A histogram of lengths as SVG, with its figures as a table.

use std::fmt::Write as _;

use foil_common::plural::{are, counted, grouped};
use foil_common::text::inspect::Lengths;

use super::measure::{Histogram, Measured};

/// Size of the drawing, and of the margins around the bars.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 150.0;
const SIDE: f64 = 6.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 20.0;
/// Approximate width of a character in a label.
const CHARACTER: f64 = 6.0;

/// A card with the histogram. Bars beyond the budget, and the budget itself, are marked by color and in
/// words.
pub(super) fn card(measured: &Measured) -> String {
    let Measured { what, lengths, histogram } = measured;
    let said = said(lengths);
    format!(
        "<figure class=\"card chart\"><div class=\"chart-head\"><h3>{what} <span class=\"unit\">tokens</span></h3></div>\
         <figcaption>{said}; shortest {}, median {}, nine in ten ≤ {}, longest {}</figcaption>\
         <div class=\"chart-body\">{}</div>{}</figure>",
        grouped(lengths.shortest),
        grouped(lengths.median),
        grouped(lengths.ninth_decile),
        grouped(lengths.longest),
        drawing(what, &said, histogram, lengths),
        figures(histogram),
    )
}

/// How many texts fit the budget, in words.
fn said(lengths: &Lengths) -> String {
    let [cut, rows, budget] = [lengths.rows - lengths.fit, lengths.rows, lengths.budget].map(grouped);
    match (lengths.rows - lengths.fit, lengths.is_shared) {
        (0, is_shared) => {
            let all =
                if lengths.rows == 1 { "the only one fits".to_owned() } else { format!("all {rows} fit") };
            let shared = if is_shared { ", with the other part," } else { "" };
            format!("{all}{shared} {budget} tokens")
        }
        (count, is_shared) => {
            let verb = are(count);
            let to = if is_shared { "to fit, with the other part, in" } else { "to" };
            format!("{cut} of {rows} {verb} cut {to} {budget} tokens")
        }
    }
}

/// The ranges of lengths that have texts: the first length, the label and the count.
fn bars(histogram: &Histogram) -> impl Iterator<Item = (usize, String, usize)> {
    let Histogram { width, counts, beyond } = histogram;
    let bar = move |(bar, count): (usize, &usize)| (bar * width, range(bar * width, *width), *count);
    let last = (histogram.end(), format!("{} tokens or more", grouped(histogram.end())), *beyond);
    counts.iter().enumerate().map(bar).chain([last]).filter(|(.., count)| *count > 0)
}

fn drawing(what: &str, said: &str, histogram: &Histogram, lengths: &Lengths) -> String {
    let (width, budget, end) = (histogram.width, lengths.budget, histogram.end());
    let has_beyond = histogram.beyond > 0;
    let most = bars(histogram).map(|(.., count)| count).max().unwrap_or(1);
    let step = (WIDTH - 2.0 * SIDE) / (end / width + usize::from(has_beyond)) as f64;
    let floor = HEIGHT - BOTTOM;
    let place = |tokens: usize| SIDE + tokens as f64 / width as f64 * step;
    let mut svg = format!(
        "<svg class=\"histogram\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"Histogram of {what}: {said}\">"
    );
    for (from, range, count) in bars(histogram) {
        // The first bar beyond the budget may hold some lengths that still fit.
        let class = if from > budget { "bar over" } else { "bar" };
        let height = (count as f64 / most as f64 * (floor - TOP)).max(1.0);
        let _ = write!(
            svg,
            "<rect class=\"{class}\" x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{height:.2}\"><title>{range}: {}</title></rect>",
            place(from) + step * 0.06,
            floor - height,
            step * 0.88,
            grouped(count),
        );
    }
    let _ = write!(
        svg,
        "<line class=\"axis\" x1=\"{SIDE}\" x2=\"{:.1}\" y1=\"{floor}\" y2=\"{floor}\"/>",
        WIDTH - SIDE
    );
    let last = if has_beyond { format!("≥ {}", grouped(end)) } else { grouped(end) };
    for (x, anchor, label) in [
        (place(0), "start", grouped(0_usize)),
        (place(end / 2), "middle", grouped(end / 2)),
        (WIDTH - SIDE, "end", last),
    ] {
        svg += &label_at(x, HEIGHT - 5.0, anchor, "tick", &label);
    }
    let line = (budget <= end).then(|| budget_line(place(budget), lengths));
    let rows = if most == 1 { counted(most, "row") } else { format!("{} rows", grouped(most)) };
    let taken = SIDE + rows.chars().count() as f64 * CHARACTER;
    // The count of the highest bar is on the side that the budget's label leaves free.
    let (x, anchor) = match &line {
        Some((from, _)) if *from < taken + CHARACTER => (WIDTH - SIDE, "end"),
        _ => (SIDE, "start"),
    };
    svg += &label_at(x, 12.0, anchor, "tick", &rows);
    svg += &line.map(|(_, line)| line).unwrap_or_default();
    svg + "</svg>"
}

fn label_at(x: f64, y: f64, anchor: &str, class: &str, label: &str) -> String {
    format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{label}</text>")
}

/// The dashed line of the budget at `x` with its label, and approximately where they begin.
fn budget_line(x: f64, lengths: &Lengths) -> (f64, String) {
    let budget = grouped(lengths.budget);
    let label = match lengths.is_shared {
        true => format!("max_length {budget}, with the other part"),
        false => format!("limit {budget}"),
    };
    let is_right = x > WIDTH / 2.0;
    let (label_x, anchor) = if is_right { (x - 4.0, "end") } else { (x + 4.0, "start") };
    let from = if is_right { label_x - label.chars().count() as f64 * CHARACTER } else { x };
    let floor = HEIGHT - BOTTOM;
    let line = format!("<line class=\"budget\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"4\" y2=\"{floor}\"/>");
    (from, line + &label_at(label_x, 12.0, anchor, "tick of-budget", &label))
}

fn range(from: usize, width: usize) -> String {
    match (width, from) {
        (1, 1) => "1 token".to_owned(),
        (1, _) => format!("{} tokens", grouped(from)),
        _ => format!("{} to {} tokens", grouped(from), grouped(from + width - 1)),
    }
}

fn figures(histogram: &Histogram) -> String {
    let mut rows = String::new();
    for (_, range, count) in bars(histogram) {
        let _ = write!(rows, "<tr><th>{range}</th><td class=\"number\">{}</td></tr>", grouped(count));
    }
    format!(
        "<details><summary class=\"sub\">Figures</summary><div class=\"scroll tall\"><table class=\"data\"><tbody>{rows}</tbody></table></div></details>"
    )
}

#[cfg(test)]
mod tests {
    use foil_common::text::Limits;

    use super::*;

    fn prompts(lengths: &[usize], limits: Limits) -> String {
        card(&Measured::prompts(lengths, &[], limits))
    }

    #[test]
    fn a_histogram_has_a_bar_for_each_range_and_the_budget() {
        let card = prompts(&[3, 3, 90, 250], Limits::of(100, 9));
        assert_eq!(card.matches("<rect").count(), 3);
        assert_eq!(card.matches("class=\"bar over\"").count(), 1);
        assert!(card.contains("limit 100") && card.contains("1 of 4 is cut to 100 tokens"), "{card}");
        assert!(card.contains("250 to 259 tokens: 1") && card.contains("0 to 9 tokens: 2"), "{card}");
        let fits = prompts(&[3], Limits::of(100, 9));
        assert!(!fits.contains("limit 100") && fits.contains("the only one fits 100 tokens"), "{fits}");
    }

    #[test]
    fn a_shared_budget_is_named() {
        let lengths = Measured::responses("chosen", &[400, 9], &[700, 1_200], Limits::shared(1_000));
        let card = card(&lengths);
        assert!(card.contains("2 of 2 are cut to fit, with the other part, in 1,000 tokens"), "{card}");
        assert!(card.contains(">max_length 1,000, with the other part</text>"), "{card}");
        let fits = super::card(&Measured::responses("chosen", &[4], &[7], Limits::shared(1_000)));
        assert!(fits.contains("the only one fits, with the other part, 1,000 tokens"), "{fits}");
    }

    #[test]
    fn labels_do_not_overlap_and_numbers_are_separated() {
        let rows = |card: &str, side: &str| card.contains(&format!("text-anchor=\"{side}\">2 rows</text>"));
        let apart = prompts(&[3, 3, 390], Limits::of(100, 9));
        assert!(rows(&apart, "start") && !rows(&apart, "end"), "{apart}");
        // The line is right of the middle, and its long label left of it.
        let long = card(&Measured::responses("chosen", &[4; 3], &[700, 700, 1_790], Limits::shared(1_000)));
        assert!(rows(&long, "end"), "{long}");
        let huge = prompts(&[3, 1_500, 1_000_000, 1_000_000], Limits::of(500, 9));
        assert!(huge.contains("2,100 tokens or more: 2<") && huge.contains(">≥ 2,100<"), "{huge}");
        assert!(huge.contains("3 of 4 are cut") && huge.contains("longest 1,000,000"), "{huge}");
    }
}
