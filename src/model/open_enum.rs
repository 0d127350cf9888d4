//! Enums of words from other processes, whose versions may differ: an unknown word is a value.

/// Defines an enum with one variant for each word, and `Unknown` for all others. It is serialized as its word.
macro_rules! open_enum {
    ($(#[$attribute:meta])* pub enum $name:ident { $($(#[$of_variant:meta])* $variant:ident => $word:literal,)* }) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(from = "String", into = "String")]
        pub enum $name {
            $($(#[$of_variant])* $variant,)*
            Unknown(String),
        }

        impl $name {
            pub fn as_str(&self) -> &str {
                match self {
                    $($name::$variant => $word,)*
                    $name::Unknown(word) => word,
                }
            }
        }

        impl From<String> for $name {
            fn from(word: String) -> $name {
                match word.as_str() {
                    $($word => $name::$variant,)*
                    _ => $name::Unknown(word),
                }
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                match value {
                    $name::Unknown(word) => word,
                    known => known.as_str().into(),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use open_enum;

#[cfg(test)]
mod tests {
    open_enum! {
        pub enum Colour {
            Red => "red",
            DarkBlue => "dark blue",
        }
    }

    #[test]
    fn known_and_unknown_words_round_trip() {
        for (text, colour) in [
            ("\"red\"", Colour::Red),
            ("\"dark blue\"", Colour::DarkBlue),
            ("\"mauve\"", Colour::Unknown("mauve".into())),
        ] {
            let read: Colour = serde_json::from_str(text).unwrap();
            assert_eq!(read, colour);
            assert_eq!(format!("\"{read}\""), text);
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
    }
}
