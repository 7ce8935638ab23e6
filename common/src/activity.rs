//! The work of a rank before and after the steps or rows of its phase. Each activity counts in a unit of its
//! own, which is how users see it.

use std::fmt;

use foil_proto::v1;

/// Work of a rank that is neither steps nor rows, in the usual order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Activity {
    Downloading,
    /// From disk to the device.
    Loading,
    /// Rows to tokens.
    Encoding,
    /// Waiting for the other ranks of a gang.
    Rendezvous,
    /// From the device to disk.
    Saving,
    Hashing,
    Uploading,
}

impl Activity {
    const ALL: [Self; 7] = [
        Self::Downloading,
        Self::Loading,
        Self::Encoding,
        Self::Rendezvous,
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
            Self::Rendezvous => "ranks met",
            Self::Saving => "bytes saved",
            Self::Hashing => "bytes hashed",
            Self::Uploading => "bytes uploaded",
        }
    }

    /// The activity that counts in `unit`; `None` for units of steps and rows.
    pub fn from_unit(unit: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|activity| activity.unit() == unit)
    }

    /// Whether its unit is bytes.
    pub fn counts_bytes(self) -> bool {
        self.unit().starts_with("bytes")
    }
}

impl From<Activity> for v1::Activity {
    fn from(activity: Activity) -> Self {
        match activity {
            Activity::Downloading => Self::Downloading,
            Activity::Loading => Self::Loading,
            Activity::Encoding => Self::Encoding,
            Activity::Rendezvous => Self::Rendezvous,
            Activity::Saving => Self::Saving,
            Activity::Hashing => Self::Hashing,
            Activity::Uploading => Self::Uploading,
        }
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Downloading => "downloading",
            Self::Loading => "loading",
            Self::Encoding => "encoding",
            Self::Rendezvous => "waiting for the other ranks",
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
        for activity in Activity::ALL {
            assert_eq!(Activity::from_unit(activity.unit()), Some(activity));
        }
        assert_eq!(["steps", "prompts", "pairs", ""].map(Activity::from_unit), [None; 4]);
    }
}
