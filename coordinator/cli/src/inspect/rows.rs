//! The rows of a data set as the models read them: lengths of all, tokens of the first.

use anyhow::Result;
use foil_common::data::row_set::RowSet;
use foil_common::data::rows::{Prompt, Row};
use foil_common::text::inspect::{self, LengthAccuracy, Reader};
use foil_common::text::{Encoder, Limits, TextError};
use foil_coordinator::resolve::local::{LocalInputs, LocalSet, Rows};
use foil_coordinator::resolve::map_in_parallel;
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
    pub(super) fn set(&mut self, local: &LocalInputs, set: &LocalSet) -> Result<()> {
        let reward = local.reward.as_ref().unwrap_or(&local.policy);
        match &set.rows {
            Rows::Demonstrations(rows) => {
                self.rows(local, (&local.policy, Reader::Policy), rows, &[("answers", "answer")])?;
            }
            Rows::Pairs(rows) => {
                let names = [("chosen", "chosen"), ("rejected", "rejected")];
                let (prompts, responses) = self.rows(local, (reward, Reader::Reward), rows, &names)?;
                self.length_accuracy(&prompts, &responses[0], &responses[1]);
            }
            Rows::Golden(rows) => {
                self.rows(local, (reward, Reader::Reward), rows, &[("golden answers", "golden")])?;
            }
            Rows::Prompts(rows) => {
                self.rows(local, (&local.policy, Reader::Policy), rows, &[])?;
            }
        }
        Ok(())
    }

    /// Measures the rows and shows the first ones. `names` has the names of the responses of all rows and of
    /// one. Returns the lengths of the prompts, and those of each response.
    fn rows<T: Row + Sync>(
        &mut self,
        local: &LocalInputs,
        (encoder, reader): (&Encoder, Reader),
        rows: &RowSet<T>,
        names: &[(&'static str, &'static str)],
    ) -> Result<(Vec<usize>, Vec<Vec<usize>>)> {
        let mut prompts = Vec::with_capacity(rows.len());
        let mut responses = vec![Vec::with_capacity(rows.len()); names.len()];
        let measure = |row: &T| -> Result<(usize, Vec<usize>), TextError> {
            let prompt = row.prompt();
            let responses = row.responses().into_iter();
            let responses = responses.map(|response| inspect::response_length(encoder, prompt, response));
            Ok((inspect::prompt_length(encoder, prompt)?, responses.collect::<Result<_, _>>()?))
        };
        for batch in rows.batches() {
            for measured in map_in_parallel(&batch?, measure) {
                let (prompt, lengths) = measured?;
                prompts.push(prompt);
                for (all, length) in responses.iter_mut().zip(lengths) {
                    all.push(length);
                }
            }
        }
        let lengths: Vec<&[usize]> = responses.iter().map(Vec::as_slice).collect();
        self.note(Measured::prompts(&prompts, &lengths, self.limits));
        for ((what, _), lengths) in names.iter().zip(lengths) {
            self.note(Measured::responses(what, &prompts, lengths, self.limits));
        }
        for row in rows.iter().take(self.rows) {
            self.show(local, (encoder, reader), &row?, names)?;
        }
        Ok((prompts, responses))
    }

    fn note(&mut self, measured: Measured) {
        let what = measured.what;
        self.lines.push(format!("  {what}: {}", measured.lengths));
        self.lengths.insert(what.replace(' ', "_"), json!(measured.lengths));
        self.set.measured.push(measured);
    }

    /// How well the lengths of responses, after truncation, distinguish chosen from rejected ones.
    fn length_accuracy(&mut self, prompts: &[usize], chosen: &[usize], rejected: &[usize]) {
        let accuracy = LengthAccuracy::of(&measure::kept(prompts, chosen, rejected, self.limits));
        self.lengths.insert("accuracy_of_length".to_owned(), json!(accuracy));
        self.lines.push(format!("  {accuracy}"));
        self.set.length_accuracy = Some(accuracy);
    }

    /// A row token by token, once with each response.
    fn show<T: Row>(
        &mut self,
        local: &LocalInputs,
        (encoder, reader): (&Encoder, Reader),
        row: &T,
        names: &[(&'static str, &'static str)],
    ) -> Result<(), TextError> {
        let place = local.place(self.set.name, row.id());
        let place = place.map(|place| format!(" ({place})")).unwrap_or_default();
        let title = format!("row {}{place}", row.id());
        if names.is_empty() {
            self.row(encoder, &title, row.prompt(), None)?;
        }
        for ((_, name), response) in names.iter().zip(row.responses()) {
            let response = Some((reader, response));
            self.row(encoder, &format!("{title}, {name}"), row.prompt(), response)?;
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
