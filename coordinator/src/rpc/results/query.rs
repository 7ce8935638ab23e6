//! A validated request for a listing of completions.

use foil_proto::v1::{self, CompletionSet, CompletionSort, Selection};
use prost::Message;
use tonic::Status;

use crate::rpc::listing::page_size;
use crate::rpc::status::{bad_field, bad_token};

const DEFAULT_PAGE_SIZE: u32 = 20;
const MAX_PAGE_SIZE: u32 = 100;
const DEFAULT_TEXT_BYTES: u32 = 2048;
const TEXT_BYTES: std::ops::RangeInclusive<u32> = 64..=16_384;
const MAX_CONTAINS_BYTES: usize = 200;

/// A validated request.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) job: String,
    pub(super) set: CompletionSet,
    /// Empty for the default.
    pub(super) rounds: Vec<u32>,
    pub(super) sort: CompletionSort,
    pub(super) descending: bool,
    pub(super) sort_round: Option<u32>,
    pub(super) filter: v1::CompletionFilter,
    pub(super) text_bytes: usize,
    pub(super) page_size: usize,
    /// Number of rows before the page.
    pub(super) offset: u64,
    /// Hash of everything that selects and orders rows.
    hash: String,
}

impl Query {
    /// # Errors
    /// A value is out of range, or the token belongs to another listing.
    pub(super) fn parse(request: v1::ListCompletionsRequest) -> Result<Self, Status> {
        let set = CompletionSet::try_from(request.set).map_err(|_| unknown("set", request.set))?;
        let sort = CompletionSort::try_from(request.sort).map_err(|_| unknown("sort", request.sort))?;
        let filter = request.filter.clone().unwrap_or_default();
        check_filter(&filter)?;
        let hash = hash(&request);
        let v1::ListCompletionsRequest {
            job_id,
            rounds,
            descending,
            sort_round,
            text_bytes,
            page_size: size,
            page_token,
            offset,
            ..
        } = request;
        let text_bytes = if text_bytes == 0 { DEFAULT_TEXT_BYTES } else { text_bytes };
        if !TEXT_BYTES.contains(&text_bytes) {
            let (min, max) = (TEXT_BYTES.start(), TEXT_BYTES.end());
            let problem =
                format!("found {text_bytes}, expected {min} to {max}, or 0 for {DEFAULT_TEXT_BYTES}");
            return Err(bad_field("text_bytes", &problem));
        }
        let (rounds, offset) = match page_token.as_str() {
            "" => (rounds, offset),
            _ if offset != 0 => return Err(bad_field("offset", "it cannot be given with a page token")),
            token => parse_token(token, &hash).ok_or_else(bad_token)?,
        };
        let page_size = page_size(size, DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE);
        let text_bytes = text_bytes as usize;
        Ok(Self {
            job: job_id,
            set: if set == CompletionSet::Unspecified { CompletionSet::Evaluation } else { set },
            rounds,
            sort: if sort == CompletionSort::Unspecified { CompletionSort::Prompt } else { sort },
            descending,
            sort_round,
            filter,
            text_bytes,
            page_size,
            offset,
            hash,
        })
    }

    /// The token of the page that begins at a row of the listing. It names the rounds shown, so that rounds
    /// that the job finishes in the meantime do not appear on a later page.
    pub(super) fn token(&self, offset: u64, rounds: &[u32]) -> String {
        let rounds: Vec<String> = rounds.iter().map(ToString::to_string).collect();
        format!("{offset}.{}.{}", rounds.join("-"), self.hash)
    }

    pub(super) fn has_filter(&self) -> bool {
        self.filter != v1::CompletionFilter::default()
    }

    /// A permanent name for the rows and their order, given these columns.
    pub(super) fn key(&self, columns: &[String]) -> String {
        format!("{}/{}", columns.join("+"), self.hash)
    }
}

fn parse_token(token: &str, hash: &str) -> Option<(Vec<u32>, u64)> {
    let mut parts = token.splitn(3, '.');
    let offset = parts.next()?.parse().ok()?;
    let rounds = parts.next()?.split('-').map(|round| round.parse().ok()).collect::<Option<Vec<u32>>>()?;
    (parts.next()? == hash && rounds.len() <= super::catalog::MAX_ROUNDS).then_some((rounds, offset))
}

fn hash(request: &v1::ListCompletionsRequest) -> String {
    let selecting = v1::ListCompletionsRequest {
        page_size: 0,
        text_bytes: 0,
        offset: 0,
        page_token: String::new(),
        ..request.clone()
    };
    blake3::hash(&selecting.encode_to_vec()).to_hex()[..16].to_owned()
}

fn check_filter(filter: &v1::CompletionFilter) -> Result<(), Status> {
    if Selection::try_from(filter.selection).is_err() {
        return Err(unknown("filter.selection", filter.selection));
    }
    if filter.contains.len() > MAX_CONTAINS_BYTES {
        let found = filter.contains.len();
        let problem = format!("it has {found} bytes, expected at most {MAX_CONTAINS_BYTES}");
        return Err(bad_field("filter.contains", &problem));
    }
    let bounds = [
        ("filter.min_reward", filter.min_reward),
        ("filter.max_reward", filter.max_reward),
        ("filter.min_gold", filter.min_gold),
        ("filter.max_gold", filter.max_gold),
    ];
    match bounds.iter().find(|(_, bound)| bound.is_some_and(f64::is_nan)) {
        Some((field, _)) => Err(bad_field(field, "found NaN, expected a number")),
        None => Ok(()),
    }
}

fn unknown(field: &str, found: i32) -> Status {
    bad_field(field, &format!("found {found}, which this version does not know"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::tests::violation;

    fn request() -> v1::ListCompletionsRequest {
        v1::ListCompletionsRequest { job_id: "j".into(), ..Default::default() }
    }

    #[test]
    fn what_is_left_out_has_defaults_and_what_is_too_much_is_refused() {
        let query = Query::parse(request()).unwrap();
        assert_eq!((query.set, query.sort), (CompletionSet::Evaluation, CompletionSort::Prompt));
        assert_eq!((query.page_size, query.text_bytes, query.offset), (20, 2048, 0));
        assert!(!query.has_filter());
        let many = Query::parse(v1::ListCompletionsRequest { page_size: 9999, ..request() }).unwrap();
        assert_eq!(many.page_size, 100);
        let filtered =
            |filter: v1::CompletionFilter| v1::ListCompletionsRequest { filter: Some(filter), ..request() };
        for (bad, field) in [
            (v1::ListCompletionsRequest { set: 99, ..request() }, "set"),
            (v1::ListCompletionsRequest { sort: -1, ..request() }, "sort"),
            (v1::ListCompletionsRequest { text_bytes: 63, ..request() }, "text_bytes"),
            (v1::ListCompletionsRequest { text_bytes: 1 << 20, ..request() }, "text_bytes"),
            (
                filtered(v1::CompletionFilter { contains: "x".repeat(201), ..Default::default() }),
                "filter.contains",
            ),
            (filtered(v1::CompletionFilter { selection: 9, ..Default::default() }), "filter.selection"),
            (
                filtered(v1::CompletionFilter { min_gold: Some(f64::NAN), ..Default::default() }),
                "filter.min_gold",
            ),
        ] {
            assert_eq!(violation(&Query::parse(bad).unwrap_err()), field);
        }
    }

    #[test]
    fn a_token_is_valid_for_its_own_listing_and_names_its_rounds() {
        let by_reward = v1::ListCompletionsRequest { sort: CompletionSort::Reward.into(), ..request() };
        let token = Query::parse(by_reward.clone()).unwrap().token(40, &[0, 12]);
        let next = |request: v1::ListCompletionsRequest| {
            Query::parse(v1::ListCompletionsRequest { page_token: token.clone(), ..request })
        };
        let query = next(v1::ListCompletionsRequest { page_size: 7, text_bytes: 100, ..by_reward.clone() });
        let query = query.unwrap();
        assert_eq!((query.offset, query.rounds.as_slice(), query.page_size), (40, &[0, 12][..], 7));
        for other in [
            request(),
            v1::ListCompletionsRequest { descending: true, ..by_reward.clone() },
            v1::ListCompletionsRequest { job_id: "k".into(), ..by_reward.clone() },
        ] {
            assert_eq!(violation(&next(other).unwrap_err()), "page_token");
        }
        let jumped = v1::ListCompletionsRequest { offset: 3, ..by_reward.clone() };
        assert_eq!(violation(&next(jumped).unwrap_err()), "offset");
        for forged in ["", ".", "x", "1", "1.2", "-1.0.x", "1..", "999999999999999999999.0."] {
            let forged = v1::ListCompletionsRequest { page_token: forged.into(), ..by_reward.clone() };
            assert_eq!(Query::parse(forged.clone()).is_ok(), forged.page_token.is_empty());
        }
    }
}
