//! Values that are stored as the text they are written as, and checked when they are read.

/// Has each of these stored as its text: read by `FromStr`, whose error is the `Error` in scope, written by `Display`.
macro_rules! stored_as_text {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self, Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }
    )*};
}

/// Has each of these, which are a text and nothing else, shown as that.
macro_rules! shown_as_text {
    ($($name:ident),*) => {$(
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }
    )*};
}

pub(crate) use {shown_as_text, stored_as_text};
