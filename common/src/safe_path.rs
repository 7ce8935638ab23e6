//! Paths of an artifact's files. Another process chose them, so they must not escape the directory they are
//! written to.

use std::path::Path;

/// A file's path below its artifact's directory: a name, or a folder and a name, neither of which is empty or
/// begins with a dot. `None` for anything else.
pub fn parse(path: &str) -> Option<&Path> {
    let plain = |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains('\\');
    (path.split('/').count() <= 2 && path.split('/').all(plain)).then(|| Path::new(path))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for path in ["model.safetensors", "adapter/adapter_config.json"] {
            assert_eq!(parse(path), Some(path.as_ref()));
        }
        for path in ["", "../x", "/etc/x", ".ssh", "a\\b", "a/..", "a/../b", "a//b", "a/b/c", "a/.b", "a/"] {
            assert_eq!(parse(path), None, "{path}");
        }
    }
}
