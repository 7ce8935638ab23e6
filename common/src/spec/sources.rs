//! Sources of a data set: files that are read in the same way, with the settings of `data.sources`.

use std::collections::BTreeMap;

use foil_proto::v1;

use super::SpecError;
use super::check::{Range, nearest, path, real, unknown_choice, wire_size};
use super::choice::choices;
use super::reference::InputRef;
use crate::data::parse::columns;

/// Files of one set that are read in the same way.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DataSource {
    pub inputs: Vec<InputRef>,
    /// Share in the mixture, relative to the weights of the set's other sources.
    pub weight: Option<f64>,
    /// The columns' names in the files, by Foil's names.
    pub columns: BTreeMap<String, String>,
    pub filter: RowFilter,
    pub limit: Option<usize>,
}

choices! {
    /// A data set that is read from files.
    SourceSet:
    #[default]
    Preferences = "preferences",
    Golden = "golden",
    Prompts = "prompts",
    Sft = "sft",
    EvaluationPreferences = "evaluation_preferences",
    EvaluationPrompts = "evaluation_prompts",
}

/// Lengths of the rows to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowFilter {
    pub prompt_tokens: Bounds,
    pub answer_tokens: Bounds,
    pub prompt_characters: Bounds,
    pub answer_characters: Bounds,
}

/// A range of lengths, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    pub min: Option<usize>,
    pub max: Option<usize>,
}

impl SourceSet {
    /// The field of the job file that lists the set's files.
    pub const fn field(self) -> &'static str {
        match self {
            Self::Preferences => "data.preferences",
            Self::Golden => "data.golden",
            Self::Prompts => "data.prompts",
            Self::Sft => "data.sft",
            Self::EvaluationPreferences => "data.evaluation.preferences",
            Self::EvaluationPrompts => "data.evaluation.prompts",
        }
    }
}

impl Bounds {
    fn parse(at: &str, part: &str, min: Option<u32>, max: Option<u32>) -> Result<Self, SpecError> {
        if let (Some(min), Some(max)) = (min, max)
            && min > max
        {
            let expected = format!("at most max_{part} ({max})");
            return Err(SpecError::field(&path(at, &format!("min_{part}")), min, &expected));
        }
        let size = |length: u32| length as usize;
        Ok(Self { min: min.map(size), max: max.map(size) })
    }

    pub fn is_unbounded(self) -> bool {
        self == Self::default()
    }

    /// The bound that a length violates: `min` or `max`.
    pub fn violated(self, length: usize) -> Option<&'static str> {
        if self.min.is_some_and(|min| length < min) {
            Some("min")
        } else if self.max.is_some_and(|max| length > max) {
            Some("max")
        } else {
            None
        }
    }
}

impl RowFilter {
    fn parse(at: &str, wire: v1::FilterSpec) -> Result<Self, SpecError> {
        let v1::FilterSpec {
            min_prompt_tokens,
            max_prompt_tokens,
            min_answer_tokens,
            max_answer_tokens,
            min_prompt_characters,
            max_prompt_characters,
            min_answer_characters,
            max_answer_characters,
        } = wire;
        Ok(Self {
            prompt_tokens: Bounds::parse(at, "prompt_tokens", min_prompt_tokens, max_prompt_tokens)?,
            answer_tokens: Bounds::parse(at, "answer_tokens", min_answer_tokens, max_answer_tokens)?,
            prompt_characters: Bounds::parse(
                at,
                "prompt_characters",
                min_prompt_characters,
                max_prompt_characters,
            )?,
            answer_characters: Bounds::parse(
                at,
                "answer_characters",
                min_answer_characters,
                max_answer_characters,
            )?,
        })
    }

    fn to_wire(self) -> Option<v1::FilterSpec> {
        let size = |length: Option<usize>| length.map(wire_size);
        (self != Self::default()).then(|| v1::FilterSpec {
            min_prompt_tokens: size(self.prompt_tokens.min),
            max_prompt_tokens: size(self.prompt_tokens.max),
            min_answer_tokens: size(self.answer_tokens.min),
            max_answer_tokens: size(self.answer_tokens.max),
            min_prompt_characters: size(self.prompt_characters.min),
            max_prompt_characters: size(self.prompt_characters.max),
            min_answer_characters: size(self.answer_characters.min),
            max_answer_characters: size(self.answer_characters.max),
        })
    }

    pub fn needs_tokens(self) -> bool {
        !(self.prompt_tokens.is_unbounded() && self.answer_tokens.is_unbounded())
    }
}

impl DataSource {
    /// Maximum bytes of a column's name.
    pub(super) const COLUMN_BYTES: usize = 256;

    /// A file without settings.
    pub fn plain(input: InputRef) -> Self {
        Self { inputs: vec![input], ..Self::default() }
    }

    /// Whether it may equally be a file in the list of its set. Each file of a list is a source of its own.
    fn is_plain(&self) -> bool {
        self.inputs.len() == 1 && *self == Self { inputs: self.inputs.clone(), ..Self::default() }
    }

    /// `at` is its place in the job file.
    fn parse(at: &str, wire: v1::DataSourceSpec) -> Result<Self, SpecError> {
        if wire.path.is_empty() {
            return Err(
                SpecError::missing(&path(at, "path")).advice("give the source's file, or a list of them")
            );
        }
        let inputs = wire.path.iter().enumerate();
        let inputs = inputs.map(|(index, text)| InputRef::parse(at, &format!("path[{index}]"), text));
        let weight = wire.weight.map(|weight| real(at, "weight", Some(weight), 1.0, Range::Positive));
        Ok(Self {
            inputs: inputs.collect::<Result<_, _>>()?,
            weight: weight.transpose()?,
            columns: renamed(&path(at, "columns"), wire.columns)?,
            filter: RowFilter::parse(&path(at, "filter"), wire.filter.unwrap_or_default())?,
            limit: (wire.limit > 0).then_some(wire.limit as usize),
        })
    }

    fn to_wire(&self, set: SourceSet) -> v1::DataSourceSpec {
        v1::DataSourceSpec {
            set: set.to_string(),
            path: self.inputs.iter().map(ToString::to_string).collect(),
            weight: self.weight,
            columns: self.columns.clone().into_iter().collect(),
            filter: self.filter.to_wire(),
            limit: self.limit.map_or(0, wire_size),
        }
    }
}

/// Advice on the name of a column that Foil does not read; `None` for one that it reads.
pub fn column_advice(name: &str) -> Option<String> {
    if columns::find(name).is_some() {
        return None;
    }
    let names: Vec<&str> = columns::COLUMNS.iter().map(|column| column.name).collect();
    Some(match nearest(name, names.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("those are {}", names.join(", ")),
    })
}

fn renamed(
    at: &str,
    wire: impl IntoIterator<Item = (String, String)>,
) -> Result<BTreeMap<String, String>, SpecError> {
    let columns: BTreeMap<String, String> = wire.into_iter().collect();
    let mut taken = BTreeMap::new();
    for (own, theirs) in &columns {
        if let Some(advice) = column_advice(own) {
            let expected = "a column that Foil reads, by which the file's own name stands";
            return Err(SpecError::field(at, own, expected).advice(&advice));
        }
        if theirs.is_empty() || theirs.len() > DataSource::COLUMN_BYTES {
            let found = format!("a name of {} bytes", theirs.len());
            let expected = format!("a column of the file, of 1 to {} bytes", DataSource::COLUMN_BYTES);
            return Err(SpecError::field(&path(at, own), found, &expected));
        }
        if let Some(other) = taken.insert(theirs, own) {
            let found = format!("{theirs}, which is {other} already");
            return Err(SpecError::field(&path(at, own), found, "another column of the file"));
        }
    }
    Ok(columns)
}

/// The sources of all sets as the wire has them, by set.
pub(super) struct Given(BTreeMap<&'static str, Vec<DataSource>>);

impl Given {
    pub(super) fn parse(wire: Vec<v1::DataSourceSpec>) -> Result<Self, SpecError> {
        let mut given = BTreeMap::<&'static str, Vec<DataSource>>::new();
        for (index, source) in wire.into_iter().enumerate() {
            let here = format!("data.sources[{index}]");
            if source.set.is_empty() {
                return Err(unknown_choice(&here, "set", "", SourceSet::NAMES));
            }
            let set = SourceSet::parse(&here, "set", &source.set)?;
            given.entry(set.name()).or_default().push(DataSource::parse(&here, source)?);
        }
        Ok(Self(given))
    }

    /// A set's sources: the files of its list, then those with settings.
    pub(super) fn with_list(
        &mut self,
        set: SourceSet,
        list: &[String],
    ) -> Result<Vec<DataSource>, SpecError> {
        let plain = list.iter().enumerate().map(|(index, text)| {
            InputRef::parse("", &format!("{}[{index}]", set.field()), text).map(DataSource::plain)
        });
        let mut sources = plain.collect::<Result<Vec<_>, _>>()?;
        sources.extend(self.0.remove(set.name()).unwrap_or_default());
        Ok(sources)
    }
}

/// The wire form of a set: its list if none of its sources has settings, otherwise the entries for
/// `data.sources`.
pub(super) fn to_wire(
    set: SourceSet,
    sources: &[DataSource],
    others: &mut Vec<v1::DataSourceSpec>,
) -> Vec<String> {
    if sources.iter().all(DataSource::is_plain) {
        let inputs = sources.iter().flat_map(|source| &source.inputs);
        return inputs.map(ToString::to_string).collect();
    }
    others.extend(sources.iter().map(|source| source.to_wire(set)));
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Data;

    fn source(set: &str, file: &str) -> v1::DataSourceSpec {
        v1::DataSourceSpec { set: set.into(), path: vec![file.into()], ..Default::default() }
    }

    fn parse(sources: Vec<v1::DataSourceSpec>) -> Result<Data, String> {
        let wire = v1::DataSpec { sources, prompts: vec!["first".into()], ..Default::default() };
        Data::parse(wire).map_err(|error| error.to_string())
    }

    #[test]
    fn a_source_of_several_files_stays_one() {
        let two = v1::DataSourceSpec { path: vec!["a".into(), "b".into()], ..source("golden", "") };
        let data = parse(vec![two]).unwrap();
        assert_eq!(data.golden.len(), 1);
        let wire = v1::DataSpec::from(&data);
        assert!(wire.golden.is_empty() && wire.sources.len() == 1, "{wire:?}");
        assert_eq!(Data::parse(wire).unwrap(), data);
    }

    #[test]
    fn sources_survive_the_wire() {
        let full = v1::DataSourceSpec {
            weight: Some(2.5),
            columns: [("prompt".to_owned(), "question".to_owned())].into_iter().collect(),
            filter: Some(v1::FilterSpec {
                min_prompt_tokens: Some(1),
                max_answer_characters: Some(9),
                ..Default::default()
            }),
            limit: 7,
            ..source("prompts", "b.csv")
        };
        let data = parse(vec![full, source("preferences", "c")]).unwrap();
        assert_eq!(data.prompts.len(), 2);
        assert_eq!(data.prompts[0], DataSource::plain(InputRef::Path("first".into())));
        assert_eq!((data.prompts[1].weight, data.prompts[1].limit), (Some(2.5), Some(7)));
        assert_eq!(data.prompts[1].filter.answer_characters.violated(10), Some("max"));
        assert_eq!(data.prompts[1].filter.prompt_tokens.violated(0), Some("min"));
        let wire = v1::DataSpec::from(&data);
        // A set with settings goes into `sources` whole, which keeps its order; others stay lists.
        assert_eq!(
            (wire.prompts.len(), wire.sources.len(), wire.preferences.as_slice()),
            (0, 2, &["c".to_owned()][..])
        );
        assert_eq!(Data::parse(wire).unwrap(), data);
    }

    #[test]
    fn faults_are_named_by_field() {
        let fault = |change: fn(&mut v1::DataSourceSpec)| {
            let mut one = source("golden", "a");
            change(&mut one);
            parse(vec![one]).unwrap_err()
        };
        let columns = |own: &str, theirs: &str| [(own.to_owned(), theirs.to_owned())];
        assert!(fault(|one| one.set.clear()).starts_with("data.sources[0].set: "));
        assert!(fault(|one| one.set = "goldn".into()).contains("did you mean golden?"));
        assert!(fault(|one| one.path.clear()).starts_with("data.sources[0].path is missing"));
        for weight in [0.0, -1.0, f64::NAN] {
            let wire = v1::DataSourceSpec { weight: Some(weight), ..source("golden", "a") };
            assert!(parse(vec![wire]).unwrap_err().starts_with("data.sources[0].weight: "));
        }
        let unknown = |name: &str| {
            let columns = columns(name, "q").into_iter().collect();
            parse(vec![v1::DataSourceSpec { columns, ..source("golden", "a") }]).unwrap_err()
        };
        assert!(unknown("promt").ends_with("did you mean prompt?"), "{}", unknown("promt"));
        assert!(unknown("zz").contains("those are prompt, query, "), "{}", unknown("zz"));
        let twice = v1::DataSourceSpec {
            columns: [columns("prompt", "q"), columns("answer", "q")].into_iter().flatten().collect(),
            ..source("golden", "a")
        };
        assert!(parse(vec![twice]).unwrap_err().starts_with("data.sources[0].columns.prompt: found q"));
        let filter =
            v1::FilterSpec { min_answer_tokens: Some(3), max_answer_tokens: Some(2), ..Default::default() };
        let crossed = v1::DataSourceSpec { filter: Some(filter), ..source("golden", "a") };
        let message = parse(vec![crossed]).unwrap_err();
        assert!(
            message.contains("filter.min_answer_tokens: found 3, expected at most max_answer_tokens (2)"),
            "{message}"
        );
    }
}
