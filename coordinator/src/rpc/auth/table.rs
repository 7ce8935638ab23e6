//! Every RPC, and which roles may call it. An RPC that is not listed is refused, and a test compares the list
//! with the contract.

use std::fmt;

use crate::auth::Role;
use crate::web::assets;

/// The roles that may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::rpc) enum Access {
    /// Everyone, without authentication.
    Open,
    /// Every principal, including agents.
    Known,
    /// A user of this role, or of one that includes it.
    User(Role),
    /// An agent; the service itself verifies a rank's secret.
    Agent,
    /// A user of this role, or a rank; the service distinguishes them.
    UserOrRank(Role),
}

impl Access {
    pub(in crate::rpc) fn allows(self, role: Role) -> bool {
        match self {
            Self::Open | Self::Known => true,
            Self::User(needed) => role.includes(needed),
            Self::Agent => role == Role::Agent,
            Self::UserOrRank(needed) => role.includes(needed) || role == Role::Agent,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open | Self::Known => formatter.write_str("no role"),
            Self::User(role) | Self::UserOrRank(role) => write!(formatter, "{role}"),
            Self::Agent => formatter.write_str("agent"),
        }
    }
}

/// Effect of a call; the audit log records calls that change something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::rpc) enum Effect {
    Reads,
    Changes,
}

use Access::{Agent, Known, Open, User, UserOrRank};
use Effect::{Changes, Reads};
use Role::{Admin, Operator, Submitter, Viewer};

const RPCS: &[(&str, Access, Effect)] = &[
    ("/foil.v1.Access/WhoAmI", Known, Reads),
    ("/foil.v1.Agents/ListAgents", User(Operator), Reads),
    ("/foil.v1.Artifacts/BeginUpload", Agent, Changes),
    ("/foil.v1.Artifacts/FinishUpload", Agent, Changes),
    ("/foil.v1.Artifacts/Get", UserOrRank(Viewer), Reads),
    ("/foil.v1.Artifacts/Put", UserOrRank(Submitter), Changes),
    ("/foil.v1.Artifacts/Stat", UserOrRank(Viewer), Reads),
    // A submitter may cancel, delete and pin only its own jobs.
    ("/foil.v1.Jobs/Cancel", User(Submitter), Changes),
    ("/foil.v1.Jobs/Delete", User(Submitter), Changes),
    ("/foil.v1.Jobs/Get", User(Viewer), Reads),
    ("/foil.v1.Jobs/List", User(Viewer), Reads),
    ("/foil.v1.Jobs/ListArtifacts", User(Viewer), Reads),
    ("/foil.v1.Jobs/ListPhases", User(Viewer), Reads),
    ("/foil.v1.Jobs/ListRounds", User(Viewer), Reads),
    ("/foil.v1.Jobs/Logs", User(Viewer), Reads),
    ("/foil.v1.Jobs/Submit", User(Submitter), Changes),
    ("/foil.v1.Jobs/Watch", User(Viewer), Reads),
    ("/foil.v1.Results/GetCompletion", User(Viewer), Reads),
    ("/foil.v1.Results/GetDistributions", User(Viewer), Reads),
    ("/foil.v1.Results/GetSteps", User(Viewer), Reads),
    ("/foil.v1.Results/GetTimeline", User(Viewer), Reads),
    ("/foil.v1.Results/ListCompletions", User(Viewer), Reads),
    ("/foil.v1.Storage/CollectGarbage", User(Admin), Changes),
    ("/foil.v1.Storage/Pin", User(Submitter), Changes),
    ("/foil.v1.Storage/Unpin", User(Submitter), Changes),
    // An operator sees the jobs of its tenant.
    ("/foil.v1.Storage/Usage", User(Operator), Reads),
    // The caller's own tenant; an admin may name any.
    ("/foil.v1.Tenants/GetQuota", User(Viewer), Reads),
    ("/foil.v1.Tenants/ListTenants", User(Admin), Reads),
    ("/foil.v1.Tenants/SetQuota", User(Admin), Changes),
    ("/foil.v1.Trackers/GetTrackers", User(Viewer), Reads),
    ("/foil.v1.Workers/Agent", Agent, Changes),
    // The stream of its agent represents it.
    ("/foil.v1.Workers/Rank", Agent, Reads),
    // Orchestrators' probes have no credentials.
    ("/grpc.health.v1.Health/Check", Open, Reads),
    ("/grpc.health.v1.Health/Watch", Open, Reads),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Known, Reads),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Known, Reads),
];

const PAGES: &[(&str, Access, Effect)] =
    &[("/healthz", Open, Reads), ("/metrics", User(Viewer), Reads), ("/readyz", Open, Reads)];

/// Whether a path belongs to the web UI. Its files contain no data; the page gets it from the services with
/// its user's credentials.
fn is_asset(path: &str) -> bool {
    assets::PATHS.contains(&path) || path.starts_with(assets::JOB_PATHS)
}

/// Access rule and effect of the RPC or page at a path; none if the path is unknown.
pub(super) fn find(path: &str) -> Option<(Access, Effect)> {
    let found = RPCS.iter().chain(PAGES).find(|(known, ..)| *known == path);
    found.map(|(_, access, effect)| (*access, *effect)).or(is_asset(path).then_some((Open, Reads)))
}

#[cfg(test)]
pub(in crate::rpc) fn all() -> impl Iterator<Item = (&'static str, Access)> {
    RPCS.iter().map(|(path, access, _)| (*path, *access))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// Paths of all methods of a descriptor set.
    fn methods(encoded: &[u8]) -> BTreeSet<String> {
        let set = FileDescriptorSet::decode(encoded).unwrap();
        let services =
            set.file.iter().flat_map(|file| file.service.iter().map(move |service| (file, service)));
        let methods = services.flat_map(|(file, service)| {
            service
                .method
                .iter()
                .map(move |method| format!("/{}.{}/{}", file.package(), service.name(), method.name()))
        });
        methods.collect()
    }

    #[test]
    fn every_rpc_of_the_contract_is_listed_and_no_other() {
        let sets = [
            foil_proto::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let contract: BTreeSet<String> = sets.iter().flat_map(|encoded| methods(encoded)).collect();
        let listed: BTreeSet<String> = all().map(|(path, _)| path.to_owned()).collect();
        let missing: Vec<_> = contract.difference(&listed).collect();
        assert!(missing.is_empty(), "RPCS lacks {missing:?}: say who may call them");
        let extra: Vec<_> = listed.difference(&contract).collect();
        assert!(extra.is_empty(), "RPCS has {extra:?}, which do not exist");
        assert!(RPCS.is_sorted_by_key(|(path, ..)| path), "keep the list sorted");
        assert_eq!(RPCS.len(), listed.len(), "each once");
    }

    #[test]
    fn only_probes_are_open_and_unknown_paths_are_nobodys() {
        let open: Vec<_> = RPCS.iter().chain(PAGES).filter(|(_, access, _)| *access == Open).collect();
        assert!(
            open.iter().all(|(path, ..)| path.starts_with("/grpc.health.") || path.ends_with('z')),
            "{open:?}"
        );
        for path in [
            "",
            "/jobs",
            "/app.js/",
            "/index.html",
            "/foil.v1.Jobs/Steal",
            "/foil.v1.Jobs",
            "/healthz/",
            "//healthz",
            "/foil.v1.jobs/get",
        ] {
            assert_eq!(find(path), None, "{path}");
        }
        for path in ["/", "/jobs/01j", "/workers", "/app.js", "/app.css"] {
            assert_eq!(find(path), Some((Open, Reads)), "{path} contains no data");
        }
    }
}
