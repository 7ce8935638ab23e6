//! Version and build of this program: a job is reproducible only with the same version and build.

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The source of this build, such as a commit, if `FOIL_BUILD_ID` was set; else empty.
pub const BUILD: &str = match option_env!("FOIL_BUILD_ID") {
    Some(id) => id,
    None => "",
};

/// Header of a coordinator's answers: its version and, after a space, its build.
pub const HEADER: &str = "foil-version";

/// How a peer's version or build differs from this program's; `None` if they agree where both are known.
pub fn skew(version: &str, build: &str) -> Option<String> {
    difference((VERSION, BUILD), (version, build))
}

fn difference(own: (&str, &str), peer: (&str, &str)) -> Option<String> {
    let named = |version: &str| match version {
        "" => "no version".to_owned(),
        version => format!("version {version}"),
    };
    if own.0 != peer.0 {
        return Some(format!("{} meets {}", named(peer.0), named(own.0)));
    }
    let builds_differ = !own.1.is_empty() && !peer.1.is_empty() && own.1 != peer.1;
    builds_differ.then(|| format!("build {} of version {} meets build {}", peer.1, own.0, own.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_and_builds_if_both_are_known() {
        assert_eq!(difference(("1.2", "abc"), ("1.2", "abc")), None);
        assert_eq!(difference(("1.2", ""), ("1.2", "abc")), None);
        assert_eq!(difference(("1.2", "abc"), ("1.2", "")), None);
        let version = difference(("1.2", "abc"), ("1.3", "abc")).unwrap();
        assert_eq!(version, "version 1.3 meets version 1.2");
        assert_eq!(difference(("1.2", ""), ("", "")).unwrap(), "no version meets version 1.2");
        let build = difference(("1.2", "abc"), ("1.2", "def")).unwrap();
        assert_eq!(build, "build def of version 1.2 meets build abc");
    }
}
