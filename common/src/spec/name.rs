use std::fmt;

use super::SpecError;

/// Lower-case letters, digits and '-', starting and ending with a letter or digit; at most 63 characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobName(String);

impl JobName {
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        if text.is_empty() {
            return Err(SpecError::missing("name").advice("give the job a name, for example name: my-job"));
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let well_formed = text.chars().all(allowed) && !text.starts_with('-') && !text.ends_with('-');
        if text.len() > 63 || !well_formed {
            return Err(SpecError::field(
                "name",
                format!("{text:?}"),
                "at most 63 lower-case letters, digits and '-', without '-' at either end",
            ));
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
