//! Listings of jobs: filters and page tokens.

use foil_common::spec::Labels;
use foil_proto::v1;
use prost::Message;
use tonic::Status;

use super::status::{bad_field, bad_label, bad_token};
use crate::driver::Query;

const DEFAULT_PAGE_SIZE: u32 = 50;
const MAX_PAGE_SIZE: u32 = 1000;

/// The number of items on a page, given the number requested; 0 means the default.
pub(super) fn page_size(wanted: u32, default: u32, max: u32) -> usize {
    (if wanted == 0 { default } else { wanted.min(max) }) as usize
}

/// Hash of all selection criteria of a request: a page token is valid only with the same filters.
pub(super) fn filters(request: &v1::ListJobsRequest) -> String {
    let filters = v1::ListJobsRequest { page_size: 0, page_token: String::new(), ..request.clone() };
    blake3::hash(&filters.encode_to_vec()).to_hex()[..16].to_owned()
}

/// The token of the page after the job with this id.
pub(super) fn token(after: &str, filters: &str) -> String {
    format!("{after}.{filters}")
}

/// The query for a request, without tenant and owner.
pub(super) fn query(request: v1::ListJobsRequest) -> Result<Query, Status> {
    let filters = filters(&request);
    let states = request.states().collect::<Vec<_>>();
    if states.len() != request.states.len() || states.contains(&v1::JobState::Unspecified) {
        return Err(bad_field("states", "it names a state that this version does not know"));
    }
    let v1::ListJobsRequest { page_size, page_token, name, id_prefix, labels, .. } = request;
    let size = self::page_size(page_size, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE);
    let labels = Labels::parse("labels", labels).map_err(|error| bad_label(&error))?;
    let after = match page_token.rsplit_once('.') {
        None if page_token.is_empty() => None,
        Some((after, of)) if of == filters => Some(after.to_owned()),
        _ => return Err(bad_token()),
    };
    Ok(Query { size, after, name, id_prefix, states, labels, ..Query::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_valid_with_its_own_filters_only() {
        let of = |states: &[v1::JobState], name: &str| v1::ListJobsRequest {
            states: states.iter().map(|state| i32::from(*state)).collect(),
            name: name.to_owned(),
            ..Default::default()
        };
        let running = of(&[v1::JobState::Running], "a");
        let page_token = token("j7", &filters(&running));
        let next = |request: v1::ListJobsRequest| {
            query(v1::ListJobsRequest { page_token: page_token.clone(), ..request })
        };
        assert_eq!(next(running.clone()).unwrap().after.as_deref(), Some("j7"));
        let larger = v1::ListJobsRequest { page_size: 9, ..running };
        assert_eq!(next(larger).unwrap().size, 9, "the size may change");
        for other in [of(&[], "a"), of(&[v1::JobState::Running], "b"), of(&[v1::JobState::Queued], "a")] {
            assert_eq!(next(other).unwrap_err().code(), tonic::Code::InvalidArgument);
        }
        let forged = v1::ListJobsRequest { page_token: "j7".into(), ..Default::default() };
        assert!(query(forged).is_err());
    }

    #[test]
    fn unknown_states_and_malformed_labels_are_refused() {
        let unknown = v1::ListJobsRequest { states: vec![99], ..Default::default() };
        assert!(query(unknown).unwrap_err().message().starts_with("states: "));
        let labels = [("a b".to_owned(), String::new())].into();
        let malformed = v1::ListJobsRequest { labels, ..Default::default() };
        assert!(query(malformed).unwrap_err().message().starts_with("labels: "));
    }
}
