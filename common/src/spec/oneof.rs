//! Alternative blocks, one of which a job file gives: policy methods and reward losses.

use super::SpecError;

/// One member of a `oneof` with its settings.
pub(crate) trait Block: Sized {
    type Wire;

    /// Fills in the defaults and checks the ranges; `at` is the block's path.
    fn parse(at: &str, wire: &Self::Wire) -> Result<Self, SpecError>;

    fn to_wire(&self) -> Self::Wire;
}

/// Defines an enum over the members of a `oneof` of the wire contract. Each member is a [`Block`] of the
/// variant's name that implements the given trait; the enum dereferences to it. The `#[default]` variant
/// applies if none is given.
macro_rules! oneof {
    (
        $(#[$meta:meta])* $name:ident: dyn $settings:ident, $($wire:ident)::+ in $at:literal, default $default:ident;
        $($(#[$variant_meta:meta])* $variant:ident = $text:literal),+ $(,)?
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub enum $name {
            $($(#[$variant_meta])* $variant($variant)),+
        }

        impl $name {
            /// The names of the blocks, in order.
            pub const NAMES: &[&str] = &[$($text),+];

            /// The name of its block in a job file.
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $text),+
                }
            }

            /// # Errors
            /// A setting out of its range, by its path in the job file.
            pub fn parse(wire: Option<&$($wire)::+>) -> Result<Self, $crate::spec::SpecError> {
                use $($wire)::+ as Wire;
                use $crate::spec::oneof::Block;
                match wire {
                    None => Self::parse(Some(&Wire::$default(Default::default()))),
                    $(Some(Wire::$variant(settings)) => {
                        $variant::parse(concat!($at, ".", $text), settings).map(Self::$variant)
                    })+
                }
            }

            pub(crate) fn to_wire(self) -> $($wire)::+ {
                use $($wire)::+ as Wire;
                use $crate::spec::oneof::Block;
                match self {
                    $(Self::$variant(settings) => Wire::$variant(settings.to_wire())),+
                }
            }
        }

        impl std::ops::Deref for $name {
            type Target = dyn $settings;

            fn deref(&self) -> &Self::Target {
                match self {
                    $(Self::$variant(settings) => settings),+
                }
            }
        }
    };
}

pub(crate) use oneof;
