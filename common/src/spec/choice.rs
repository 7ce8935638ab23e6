//! Enums of named choices.

/// Defines an enum of named choices. An empty text on the wire means the `#[default]` one.
macro_rules! choices {
    ($(#[$meta:meta])* $name:ident: $($(#[$variant_meta:meta])* $variant:ident = $text:literal),+ $(,)?) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub enum $name {
            $($(#[$variant_meta])* $variant),+
        }

        impl $name {
            /// The names a user types, in order.
            pub const NAMES: &[&str] = &[$($text),+];

            pub const ALL: &[Self] = &[$(Self::$variant),+];

            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text),+
                }
            }

            #[allow(dead_code)]
            pub(crate) fn parse(
                at: &str,
                field: &str,
                text: &str,
            ) -> Result<Self, $crate::spec::SpecError> {
                match text {
                    "" => Ok(Self::default()),
                    $($text => Ok(Self::$variant),)+
                    _ => Err($crate::spec::check::unknown_choice(at, field, text, Self::NAMES)),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

pub(crate) use choices;
