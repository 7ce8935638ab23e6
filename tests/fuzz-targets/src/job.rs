//! Job files.

use std::path::Path;

use foil_common::spec::{Job, file, in_lists};
use foil_proto::v1;

use super::Verdict;

/// A job file: YAML or JSON. An accepted job with all defaults filled in is accepted again as the same job,
/// as `foil submit --dry-run` promises.
pub(super) fn job_file(input: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(input) else { return Verdict::Refused };
    let Ok(spec) = file::from_text(text, Path::new("/jobs")) else { return Verdict::Refused };
    let job = Job::try_from(spec).expect("an accepted file is a job");
    let resolved = v1::JobSpec::from(&job);
    let resolved = serde_json::to_value(&resolved).expect("a specification has a JSON form");
    // In the wire format, and as `foil submit --dry-run` prints it.
    for resolved in [resolved.clone(), in_lists(resolved)] {
        let printed = serde_norway::to_string(&resolved).expect("a specification has a YAML form");
        let again = file::from_text(&printed, Path::new("/elsewhere"));
        let again = again.unwrap_or_else(|error| panic!("the filled-in file is refused: {error}\n{printed}"));
        let again = Job::try_from(again).expect("an accepted file is a job");
        assert!(again == job, "the filled-in file is another job\n{again:?}\n{job:?}");
    }
    Verdict::Accepted
}
