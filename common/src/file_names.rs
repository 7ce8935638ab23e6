//! Names of an artifact's files. They come from elsewhere, so they must not lead out of the directory they are put in.

use std::path::Path;

/// A file's place below its artifact's directory: a plain name, or one in a folder with a plain name, which does not
/// begin with a dot. `None` for anything else.
pub fn inside(path: &str) -> Option<&Path> {
    let plain = |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains('\\');
    (path.split('/').count() <= 2 && path.split('/').all(plain)).then(|| Path::new(path))
}

#[cfg(test)]
mod tests {
    use super::inside;

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for path in ["model.safetensors", "adapter/adapter_config.json"] {
            assert_eq!(inside(path), Some(path.as_ref()));
        }
        for path in ["", "../x", "/etc/x", ".ssh", "a\\b", "a/..", "a/../b", "a//b", "a/b/c", "a/.b", "a/"] {
            assert_eq!(inside(path), None, "{path}");
        }
    }
}
