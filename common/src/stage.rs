//! What a rank is at before and after the steps or rows of its phase. Such work counts in a unit of its own, and the
//! unit names it wherever progress is told.

use std::fmt;

/// A part of a rank's work that is neither steps nor rows, in the order in which they usually come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    Downloading,
    /// From disk to the device.
    Loading,
    /// Rows to tokens.
    Encoding,
    /// Waiting for the other ranks of a gang.
    Meeting,
    /// From the device to disk.
    Saving,
    Hashing,
    Uploading,
}

impl Stage {
    const ALL: [Self; 7] = [
        Self::Downloading,
        Self::Loading,
        Self::Encoding,
        Self::Meeting,
        Self::Saving,
        Self::Hashing,
        Self::Uploading,
    ];

    /// The unit of its progress, for example `bytes loaded`.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Downloading => "bytes downloaded",
            Self::Loading => "bytes loaded",
            Self::Encoding => "rows encoded",
            Self::Meeting => "ranks met",
            Self::Saving => "bytes saved",
            Self::Hashing => "bytes hashed",
            Self::Uploading => "bytes uploaded",
        }
    }

    /// The stage whose progress is in `unit`; none where that is a unit of steps or rows.
    pub fn of_unit(unit: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.unit() == unit)
    }

    /// Whether its progress is in bytes.
    pub fn counts_bytes(self) -> bool {
        self.unit().starts_with("bytes")
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Downloading => "downloading",
            Self::Loading => "loading",
            Self::Encoding => "encoding",
            Self::Meeting => "waiting for the other ranks",
            Self::Saving => "saving",
            Self::Hashing => "hashing",
            Self::Uploading => "uploading",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_names_its_stage() {
        for stage in Stage::ALL {
            assert_eq!(Stage::of_unit(stage.unit()), Some(stage));
        }
        assert_eq!(["steps", "prompts", "pairs", ""].map(Stage::of_unit), [None; 4]);
    }
}
