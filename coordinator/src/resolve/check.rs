//! Encodes every row the way the phases do, so that no row can fail the job later.

use foil_common::data::row_set::RowSet;
use foil_common::data::rows::{DemonstrationRow, GoldenRow, PairRow, PromptRow, Row};
use foil_common::datasets;
use foil_common::plural::{agreeing, are, counted};
use foil_common::spec::{self, Side};
use foil_common::text::{Encoded, EncodedPrompt, Encoder, Limits, Response, TextError};

use super::compatibility::{POLICY, REWARD};
use super::encoders::Encoders;
use super::parallel::map_in_parallel;
use super::sets::{SHOWN_BAD, Sets};
use super::source_counts::{EQUAL_TOKENS, UNENCODABLE};
use super::{EXAMPLE, Models, ResolveError};

/// The parts of a row that encoding truncates.
#[derive(Debug, Clone, Copy, Default)]
struct Truncation {
    prompt: bool,
    answer: bool,
    /// Both answers of a pair have the same tokens.
    equal: bool,
}

impl From<EncodedPrompt> for Truncation {
    fn from(encoded: EncodedPrompt) -> Self {
        Self { prompt: encoded.cut > 0, ..Self::default() }
    }
}

impl From<Encoded> for Truncation {
    fn from(encoded: Encoded) -> Self {
        Self { prompt: encoded.prompt_cut > 0, answer: encoded.response_cut > 0, equal: false }
    }
}

/// Drops the rows that a model cannot encode, with warnings about them and about truncated rows.
pub(super) fn check_encodings(
    job: &spec::Job,
    sets: &mut Sets,
    models: &Models<'_>,
) -> Result<(), ResolveError> {
    let sampled = Limits::new(job.text.max_length, job.sampling.max_new_tokens);
    let shared = Limits::shared(job.text.max_length);
    let encoders = Encoders::load(job, models)?;
    let (policy, reward) = (&encoders.policy, encoders.reward());
    let own_reward = encoders.own_reward.as_ref();
    // Exported reward models need a pad token; a missing one would show only after training.
    let (field, (files, config)) = models.reward.map_or((POLICY, models.policy), |model| (REWARD, model));
    let pad = reward.pad_id().map_err(|fault| ResolveError::Text { field, fault })?;
    config.check_pad(pad).map_err(|fault| ResolveError::ModelFiles {
        field,
        name: files.name.clone(),
        fault,
    })?;

    sets.warnings.extend(policy.warnings().into_iter().map(|warning| format!("{POLICY}: {warning}")));
    sets.warnings.extend(
        own_reward.into_iter().flat_map(Encoder::warnings).map(|warning| format!("{REWARD}: {warning}")),
    );

    let allowed = job.data.max_bad_fraction;
    let checker = Checker { side: job.text.truncation_side, sampled, shared, allowed, policy, own_reward };
    checker.check(sets, datasets::SFT, "data.sft", |sets| &mut sets.sft, Checker::demonstration)?;
    checker.check(
        sets,
        datasets::PREFERENCES,
        "data.preferences",
        |sets| &mut sets.preferences,
        Checker::pair,
    )?;
    checker.check(
        sets,
        datasets::EVALUATION_PREFERENCES,
        "data.evaluation.preferences",
        |sets| &mut sets.evaluation_preferences,
        Checker::pair,
    )?;
    checker.check(sets, datasets::GOLDEN, "data.golden", |sets| &mut sets.golden, Checker::golden)?;
    checker.check(
        sets,
        datasets::GOLDEN_HOLDOUT,
        "data.golden",
        |sets| &mut sets.golden_holdout,
        Checker::golden,
    )?;
    checker.check(sets, datasets::PROMPTS, "data.prompts", |sets| &mut sets.prompts, Checker::prompt)?;
    checker.check(
        sets,
        datasets::EVALUATION_PROMPTS,
        "data.evaluation.prompts",
        |sets| &mut sets.evaluation_prompts,
        Checker::prompt,
    )
}

struct Checker<'a> {
    /// The side on which prompts are truncated.
    side: Side,
    /// Limits for golden answers and prompts.
    sampled: Limits,
    /// Limits for demonstrations and human pairs.
    shared: Limits,
    allowed: f64,
    policy: &'a Encoder,
    /// The reward model's encoder, if it is not the policy's: no row is encoded twice for nothing.
    own_reward: Option<&'a Encoder>,
}

impl Checker<'_> {
    fn demonstration(&self, row: &DemonstrationRow) -> Result<Truncation, TextError> {
        Ok(self.policy.dialogue(&row.prompt, Response::finished(&row.answer), self.shared)?.into())
    }

    fn reward(&self) -> &Encoder {
        self.own_reward.unwrap_or(self.policy)
    }

    fn pair(&self, row: &PairRow) -> Result<Truncation, TextError> {
        let answers = [row.chosen.as_str(), row.rejected.as_str()];
        let [chosen, rejected] = self.reward().pair(&row.prompt, answers, self.shared)?;
        let equal = chosen.response() == rejected.response();
        let (chosen, rejected): (Truncation, Truncation) = (chosen.into(), rejected.into());
        Ok(Truncation {
            prompt: chosen.prompt || rejected.prompt,
            answer: chosen.answer || rejected.answer,
            equal,
        })
    }

    fn golden(&self, row: &GoldenRow) -> Result<Truncation, TextError> {
        if self.own_reward.is_some() {
            self.policy.prompt(&row.prompt, self.sampled.prompt)?;
        }
        Ok(self.reward().dialogue(&row.prompt, Response::finished(&row.golden), self.sampled)?.into())
    }

    fn prompt(&self, row: &PromptRow) -> Result<Truncation, TextError> {
        if let Some(reward) = self.own_reward {
            reward.prompt(&row.prompt, self.sampled.prompt)?;
        }
        Ok(self.policy.prompt(&row.prompt, self.sampled.prompt)?.into())
    }

    fn check<T: Row + Sync>(
        &self,
        sets: &mut Sets,
        name: &'static str,
        field: &'static str,
        set: impl Fn(&mut Sets) -> &mut RowSet<T>,
        encode: impl Fn(&Self, &T) -> Result<Truncation, TextError> + Sync,
    ) -> Result<(), ResolveError> {
        let mut rows = std::mem::take(set(sets));
        let count = rows.len() as u64;
        let (mut bad, mut examples) = (0, Vec::new());
        let (mut equal, mut first_equal) = (0, None);
        let (mut prompts_cut, mut answers_cut) = (0, 0);
        let mut lost = Vec::new();
        let places = sets.places.get(field);
        let place = |row: &T| match places.and_then(|places| places.of(row.id())) {
            Some(place) => place.to_string(),
            None => format!("row {}", row.id()),
        };
        for batch in rows.batches() {
            let batch = batch?;
            let results = map_in_parallel(&batch, |row| encode(self, row));
            for (row, result) in batch.iter().zip(results) {
                match result {
                    Ok(Truncation { equal: true, .. }) => {
                        lost.push((row.id(), EQUAL_TOKENS));
                        equal += 1;
                        first_equal.get_or_insert_with(|| place(row));
                    }
                    Ok(truncation) => {
                        prompts_cut += u64::from(truncation.prompt);
                        answers_cut += u64::from(truncation.answer);
                    }
                    Err(error) => {
                        lost.push((row.id(), UNENCODABLE));
                        bad += 1;
                        if examples.len() < SHOWN_BAD {
                            examples.push(format!("{}: {error}", place(row)));
                        }
                    }
                }
            }
        }
        // In the order of the rows.
        let mut next = lost.iter().map(|(id, _)| *id).peekable();
        rows.retain(|_, id| next.next_if_eq(&id).is_none());
        *set(sets) = rows;
        sets.count_lost(field, &lost);
        if bad as f64 > self.allowed * count as f64 {
            let first = examples.swap_remove(0);
            return Err(ResolveError::Unencodable { field, bad, rows: count, allowed: self.allowed, first });
        }
        sets.record_bad_rows(name, bad, &examples);
        let cut = [prompts_cut, answers_cut];
        sets.warnings.extend(self.warnings(name, count, cut, first_equal.map(|first| (equal, first))));
        Ok(())
    }

    /// Warnings about rows with truncated parts in a set of `count` rows, and about the number of pairs with
    /// equal answers and the first of them.
    fn warnings(
        &self,
        name: &str,
        count: u64,
        [prompts_cut, answers_cut]: [u64; 2],
        equal: Option<(u64, String)>,
    ) -> Vec<String> {
        let mut warnings = Vec::new();
        let limits = match name {
            datasets::SFT | datasets::PREFERENCES | datasets::EVALUATION_PREFERENCES => self.shared,
            _ => self.sampled,
        };
        let parts = [
            (prompts_cut, "prompt", limits.prompt, "text.max_length less sampling.max_new_tokens"),
            (answers_cut, "answer", limits.response, "sampling.max_new_tokens"),
        ];
        for (cut, what, limit, setting) in parts.into_iter().filter(|(cut, ..)| *cut > 0) {
            let (fit, setting) = match limit == limits.total {
                true => ("to fit, with the other part, in", "text.max_length"),
                false => ("to", setting),
            };
            let (rows, s, are) = (counted(count, "row"), agreeing(cut, "", "s"), are(cut));
            warnings.push(format!(
                "{name}: the {what}{s} of {cut} of {rows} {are} cut {fit} {limit} tokens ({setting})"
            ));
        }
        if prompts_cut > 0 && self.side == Side::Right {
            let lost = match prompts_cut {
                1 => "the prompt loses its end".to_owned(),
                cut => format!("the {cut} prompts lose their end"),
            };
            warnings.push(format!(
                "{name}: {lost}, and with it what the template writes before an answer; \
                 set text.truncation_side: left, or raise text.max_length"
            ));
        }
        if let Some((equal, first)) = equal {
            warnings.push(format!(
                "{name}: {equal} of {} {} left out because the answers are the same tokens, cut to {} as they are{EXAMPLE}{first}",
                counted(count, "pair"),
                are(equal),
                limits.total
            ));
        }
        warnings
    }
}
