//! Pagination of the parts of a job that grow without bound: its plan, its rounds' metrics and its artifacts.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use foil_proto::v1;
use prost::Message;

use super::results;
use super::state::JobState;

/// Size limit of a page.
pub const PAGE_BYTES: usize = 1 << 20;

/// Upper bound on the overhead of a list item: its tag and its length.
const ITEM_OVERHEAD: usize = 6;

/// Start of a page: an item and, within an artifact, an object. As a page token: `12` or `12.400`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor {
    item: usize,
    object: usize,
}

impl fmt::Display for Cursor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.object {
            0 => write!(formatter, "{}", self.item),
            object => write!(formatter, "{}.{object}", self.item),
        }
    }
}

impl FromStr for Cursor {
    type Err = ParseIntError;

    fn from_str(token: &str) -> Result<Self, ParseIntError> {
        let (item, object) = token.split_once('.').unwrap_or((token, "0"));
        Ok(Self { item: item.parse()?, object: object.parse()? })
    }
}

/// Items in order, and the start of the next page, if there is one.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub next: Option<Cursor>,
}

impl<T: Message> Page<T> {
    /// Takes as many items as `size` and `bytes` allow, but at least one, so that pagination terminates.
    fn fill(items: impl Iterator<Item = (usize, T)>, size: usize, bytes: usize) -> Self {
        let mut page = Self { items: Vec::new(), next: None };
        let mut room = bytes;
        for (at, item) in items {
            let needed = size_of(&item);
            if !page.items.is_empty() && (page.items.len() >= size || needed > room) {
                page.next = Some(Cursor { item: at, object: 0 });
                break;
            }
            room = room.saturating_sub(needed);
            page.items.push(item);
        }
        page
    }
}

/// Encoded size of an item in a list.
pub(super) fn size_of(item: &impl Message) -> usize {
    item.encoded_len() + ITEM_OVERHEAD
}

/// The plan's phases, starting at a cursor.
pub fn phases(state: &JobState, from: Cursor, size: usize, bytes: usize) -> Page<v1::PhasePlan> {
    let phases = state.phases.iter().map(v1::PhasePlan::from).enumerate();
    Page::fill(phases.skip(from.item), size, bytes)
}

/// Metrics of the rounds that have any, starting at a cursor.
pub fn rounds(state: &JobState, from: Cursor, size: usize, bytes: usize) -> Page<v1::RoundResult> {
    let rounds = (0..state.spec.rounds as usize).skip(from.item);
    let figures = rounds.filter_map(|at| Some((at, results::round(state, u32::try_from(at + 1).ok()?)?)));
    Page::fill(figures, size, bytes)
}

/// The committed artifacts, starting at a cursor. The last one may be cut short; the next page continues with
/// its remaining objects.
pub fn artifacts(state: &JobState, from: Cursor, size: usize, bytes: usize) -> Page<v1::Artifact> {
    let mut page = Page { items: Vec::new(), next: None };
    let mut room = bytes;
    for (item, artifact) in results::artifacts(state).enumerate().skip(from.item) {
        let first = if item == from.item { from.object.min(artifact.objects.len()) } else { 0 };
        let head = without_objects(artifact);
        let is_full = !page.items.is_empty() && (page.items.len() >= size || size_of(&head) > room);
        if is_full {
            page.next = Some(Cursor { item, object: first });
            break;
        }
        room = room.saturating_sub(size_of(&head));
        let rest = &artifact.objects[first..];
        let taken = fitting(rest, &mut room, page.items.is_empty());
        if taken == 0 && !rest.is_empty() {
            page.next = Some(Cursor { item, object: first });
            break;
        }
        page.items.push(v1::Artifact { objects: rest[..taken].to_vec(), ..head });
        if taken < rest.len() {
            page.next = Some(Cursor { item, object: first + taken });
            break;
        }
    }
    page
}

/// Number of objects that fit; at least one if the page is empty.
fn fitting(objects: &[v1::Object], room: &mut usize, is_first: bool) -> usize {
    for (at, object) in objects.iter().enumerate() {
        let needed = size_of(object);
        if needed > *room && !(is_first && at == 0) {
            return at;
        }
        *room = room.saturating_sub(needed);
    }
    objects.len()
}

/// A copy without the objects, which may be too many to clone.
pub(super) fn without_objects(artifact: &v1::Artifact) -> v1::Artifact {
    let v1::Artifact { name, kind, job_id, phase, round, attempt, objects: _ } = artifact;
    v1::Artifact {
        name: name.clone(),
        kind: kind.clone(),
        job_id: job_id.clone(),
        phase: phase.clone(),
        round: *round,
        attempt: *attempt,
        objects: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use foil_proto::v1::job_event::Event;

    use super::super::view;
    use super::*;
    use crate::job::event::{Change, Committed};
    use crate::job::find_committed;
    use crate::job::fixture::{self, JOB, object};
    use crate::plan::Phase;

    /// A whole part, the number of its pages and the size of the largest one.
    fn collect<T: Message>(page: impl Fn(Cursor) -> Page<T>) -> (Vec<T>, usize, usize) {
        let (mut all, mut pages, mut largest) = (Vec::new(), 0, 0);
        let mut cursor = Cursor::default();
        loop {
            let Page { items, next } = page(cursor);
            pages += 1;
            largest = largest.max(items.iter().map(size_of).sum());
            all.extend(items);
            let Some(next) = next else { return (all, pages, largest) };
            cursor = next.to_string().parse().unwrap();
        }
    }

    /// A job with this many rounds that has not started.
    fn long_job(rounds: u32) -> JobState {
        let mut state = fixture::state(&[]);
        let round: Vec<Phase> = state.phases.iter().filter(|phase| phase.round == 1).cloned().collect();
        let before: Vec<Phase> = state.phases.iter().filter(|phase| phase.round == 0).cloned().collect();
        let rest = (1..=rounds).flat_map(|number| {
            round.iter().map(move |phase| Phase {
                id: Phase::id_of(number, phase.work),
                round: number,
                ..phase.clone()
            })
        });
        state.submitted.plan.phases =
            before.iter().cloned().chain(rest).map(|phase| (&phase).into()).collect();
        state.submitted.spec = Some(Box::new(state.wire_spec()));
        let mut state = JobState::submitted(JOB, 1, state.submitted).unwrap();
        state.spec.rounds = rounds;
        state
    }

    fn start(state: &mut JobState) {
        let phase = state.phases[0].id.to_string();
        let started = Change::AttemptStarted { attempt: 1, phase, world: 2 };
        state.apply(&fixture::event(2, started)).unwrap();
    }

    #[test]
    fn a_job_of_twenty_thousand_rounds_fits_a_message_and_is_complete_page_by_page() {
        let mut state = long_job(20_000);
        start(&mut state);
        let planned = state.phases.len();
        for _ in 0..planned {
            fixture::commit_next(&mut state);
        }
        let job = view::job(&state);
        assert!(job.encoded_len() <= JOB_AND_ENVELOPE, "{} bytes", job.encoded_len());
        assert_eq!(job.omitted, ["plan", "rounds", "artifacts"]);
        assert_eq!((job.phases_total as usize, job.phases_done as usize), (planned, planned));
        assert_eq!(job.best_round, 20_000, "the best round is still found");

        let (phases, pages, largest) = collect(|cursor| phases(&state, cursor, usize::MAX, PAGE_BYTES));
        assert!(pages > 1 && largest <= PAGE_BYTES, "{pages} pages of up to {largest} bytes");
        assert!(phases.into_iter().eq(state.phases.iter().map(v1::PhasePlan::from)));
        let (rounds, pages, largest) = collect(|cursor| rounds(&state, cursor, usize::MAX, PAGE_BYTES));
        assert!(pages > 1 && largest <= PAGE_BYTES);
        assert!(rounds.iter().map(|result| result.round).eq(1..=20_000));
        let (made, pages, largest) = collect(|cursor| artifacts(&state, cursor, 1000, PAGE_BYTES));
        assert!(pages > 1 && largest <= PAGE_BYTES);
        assert_eq!(made.len(), planned);
        assert_eq!(find_committed(&state, "policy@best").unwrap().name, "policy@20000");
        let error = find_committed(&state, "policy@x").unwrap_err();
        assert!(error.len() < 1000 && error.contains("more"), "{error}");
    }

    /// Size limit of a job message, including the names of omitted parts.
    const JOB_AND_ENVELOPE: usize = view::JOB_BYTES + 256;

    #[test]
    fn an_artifact_of_a_hundred_thousand_objects_goes_over_pages() {
        let mut state = fixture::state(&[]);
        start(&mut state);
        let phase = state.phases[0].clone();
        let objects: Vec<v1::Object> =
            (0..100_000).map(|chunk| object(&format!("jobs/{JOB}/{chunk:05}"))).collect();
        let artifact =
            v1::Artifact { name: "samples/all".into(), objects: objects.clone(), ..Default::default() };
        let done =
            Committed { phase: phase.id.into(), artifact, metrics: Vec::new(), seconds: 1.0, steps: None };
        let change = Change::PhaseCommitted(Box::new(done));
        state.apply(&fixture::event(3, change.clone())).unwrap();
        fixture::commit_next(&mut state);

        assert!(view::job(&state).encoded_len() <= JOB_AND_ENVELOPE);
        assert_eq!(view::job(&state).omitted, ["artifacts"]);
        for past in crate::job::events(&state, &change, 1) {
            let event = past.event(&state);
            assert!(event.encoded_len() < 1 << 20, "{} bytes", event.encoded_len());
            if let Some(Event::PhaseCommitted(committed)) = &event.event {
                assert!(committed.artifact.as_ref().unwrap().objects.is_empty());
            }
        }
        let (made, pages, largest) = collect(|cursor| artifacts(&state, cursor, usize::MAX, PAGE_BYTES));
        assert!(pages >= 10 && largest <= PAGE_BYTES, "{pages} pages of up to {largest} bytes");
        let of_first: Vec<_> = made.iter().filter(|artifact| artifact.name == "samples/all").collect();
        assert_eq!(of_first.len() + 1, made.len(), "the other artifact is on the last page too");
        assert!(of_first.iter().flat_map(|artifact| &artifact.objects).eq(&objects));
    }

    #[test]
    fn an_ordinary_job_is_complete() {
        let state = fixture::after(&[], fixture::state(&[]).phases.len());
        let job = view::job(&state);
        assert!(job.omitted.is_empty());
        assert!(job.plan.unwrap().phases.into_iter().eq(state.phases.iter().map(v1::PhasePlan::from)));
        assert_eq!(job.rounds.len(), 2);
        assert!(job.artifacts.iter().eq(results::artifacts(&state)));
    }

    #[test]
    fn a_row_of_a_list_stays_small() {
        let state = long_job(1000);
        let row = view::listed(&state);
        assert!(row.encoded_len() < 200, "{} bytes", row.encoded_len());
        assert_eq!(row.phases_total as usize, state.phases.len());
    }
}
