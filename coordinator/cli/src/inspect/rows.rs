//! The rows of a data set as the models read them: lengths of all, tokens of the first.

use foil_common::data::rows::{Prompt, Row};
use foil_common::text::inspect::{self, LengthAccuracy, Reader};
use foil_common::text::{Encoder, Limits, TextError};
use foil_coordinator::resolve::local::{LocalInputs, LocalSet, Rows};
use serde_json::{Map, Value, json};

use super::measure::{self, Measured};
use super::pieces;
use super::{Example, SetReport};

/// Collects the report on one data set, as text, for programs and for a page.
pub(super) struct Report<'a> {
    pub(super) limits: Limits,
    pub(super) rows: usize,
    pub(super) lines: &'a mut Vec<String>,
    /// The same for programs.
    pub(super) lengths: Map<String, Value>,
    pub(super) shown: Vec<Value>,
    /// The same for a page.
    pub(super) set: SetReport,
}

impl Report<'_> {
    pub(super) fn set(&mut self, local: &LocalInputs, set: &LocalSet) -> Result<(), TextError> {
        let reward = local.reward.as_ref().unwrap_or(&local.policy);
        match &set.rows {
            Rows::Demonstrations(rows) => {
                let encoder = &local.policy;
                let answers = rows.iter().map(|row| (&row.prompt, row.answer.as_str()));
                let answers = inspect::response_lengths(encoder, answers)?;
                self.measure(encoder, rows, &[("answers", &answers)])?;
                self.each(local, encoder, Reader::Policy, rows, |row| vec![("answer", row.answer.as_str())])
            }
            Rows::Pairs(rows) => {
                let chosen = rows.iter().map(|row| (&row.prompt, row.chosen.as_str()));
                let chosen = inspect::response_lengths(reward, chosen)?;
                let rejected = rows.iter().map(|row| (&row.prompt, row.rejected.as_str()));
                let rejected = inspect::response_lengths(reward, rejected)?;
                let prompts = self.measure(reward, rows, &[("chosen", &chosen), ("rejected", &rejected)])?;
                self.length_accuracy(&prompts, &chosen, &rejected);
                self.each(local, reward, Reader::Reward, rows, |row| {
                    vec![("chosen", &row.chosen), ("rejected", &row.rejected)]
                })
            }
            Rows::Golden(rows) => {
                let golden = rows.iter().map(|row| (&row.prompt, row.golden.as_str()));
                let golden = inspect::response_lengths(reward, golden)?;
                self.measure(reward, rows, &[("golden answers", &golden)])?;
                self.each(local, reward, Reader::Reward, rows, |row| vec![("golden", &row.golden)])
            }
            Rows::Prompts(rows) => {
                self.measure(&local.policy, rows, &[])?;
                self.each(local, &local.policy, Reader::Policy, rows, |_| Vec::new())
            }
        }
    }

    fn note(&mut self, measured: Measured) {
        let what = measured.what;
        self.lines.push(format!("  {what}: {}", measured.lengths));
        self.lengths.insert(what.replace(' ', "_"), json!(measured.lengths));
        self.set.measured.push(measured);
    }

    /// Notes the lengths of the prompts and of the responses to them; returns those of the prompts.
    fn measure<T: Row>(
        &mut self,
        encoder: &Encoder,
        rows: &[T],
        responses: &[(&'static str, &[usize])],
    ) -> Result<Vec<usize>, TextError> {
        let prompts = inspect::prompt_lengths(encoder, rows.iter().map(Row::prompt))?;
        let lengths: Vec<&[usize]> = responses.iter().map(|(_, lengths)| *lengths).collect();
        self.note(Measured::prompts(&prompts, &lengths, self.limits));
        for (what, lengths) in responses {
            self.note(Measured::responses(what, &prompts, lengths, self.limits));
        }
        Ok(prompts)
    }

    /// How well the lengths of responses, after truncation, distinguish chosen from rejected ones.
    fn length_accuracy(&mut self, prompts: &[usize], chosen: &[usize], rejected: &[usize]) {
        let accuracy = LengthAccuracy::of(&measure::kept(prompts, chosen, rejected, self.limits));
        self.lengths.insert("accuracy_of_length".to_owned(), json!(accuracy));
        self.lines.push(format!("  {accuracy}"));
        self.set.length_accuracy = Some(accuracy);
    }

    /// The first rows token by token, once with each response.
    fn each<T: Row>(
        &mut self,
        local: &LocalInputs,
        encoder: &Encoder,
        reader: Reader,
        rows: &[T],
        answers: impl Fn(&T) -> Vec<(&'static str, &str)>,
    ) -> Result<(), TextError> {
        for row in rows.iter().take(self.rows) {
            let place = local.place(self.set.name, row.id());
            let place = place.map(|place| format!(" ({place})")).unwrap_or_default();
            let title = format!("row {}{place}", row.id());
            let answers = answers(row);
            if answers.is_empty() {
                self.row(encoder, &title, row.prompt(), None)?;
            }
            for (name, answer) in answers {
                let response = Some((reader, answer));
                self.row(encoder, &format!("{title}, {name}"), row.prompt(), response)?;
            }
        }
        Ok(())
    }

    fn row(
        &mut self,
        encoder: &Encoder,
        title: &str,
        prompt: &Prompt,
        answer: Option<(Reader, &str)>,
    ) -> Result<(), TextError> {
        let view = inspect::row(encoder, prompt, answer, self.limits)?;
        self.lines.push(format!("  {title}:\n{view}"));
        self.shown.push(json!({ "title": title, "view": view }));
        let pieces = pieces::pieces(encoder, &view)?;
        self.set.examples.push(Example { title: title.to_owned(), view, pieces });
        Ok(())
    }
}
