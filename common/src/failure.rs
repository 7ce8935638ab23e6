//! Classes of failures, and their names as logs and users see them.

pub use foil_proto::v1::FailureClass;

/// The lower-case name of a class, for example `out_of_memory`.
pub fn class_name(class: FailureClass) -> String {
    class.as_str_name().trim_start_matches("FAILURE_CLASS_").to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_names_are_lower_case() {
        assert_eq!(class_name(FailureClass::OutOfMemory), "out_of_memory");
        assert_eq!(class_name(FailureClass::Nonfinite), "nonfinite");
    }
}
