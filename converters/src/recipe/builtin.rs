//! The built-in recipes: TOML like any other, in `builtin/`.

use super::Recipe;
use crate::error::Result;

macro_rules! builtin {
    ($($name:literal),* $(,)?) => {
        /// Names of the built-in recipes.
        pub const BUILTIN_NAMES: &[&str] = &[$($name),*];

        /// The built-in recipe `name`; `None` when there is none.
        pub fn builtin(name: &str) -> Option<Result<Recipe>> {
            let text = match name {
                $($name => include_str!(concat!("builtin/", $name, ".toml")),)*
                _ => return None,
            };
            Some(Recipe::from_toml(text))
        }
    };
}

builtin!(
    "keep",
    "any-size",
    "any-size-fine",
    "bitstack",
    "any-precision",
    "lossless",
    "q8",
    "q6",
    "q5",
    "q4",
    "q4-rtn",
    "q4-hqq",
    "q4-nf4",
    "q4-sparse",
    "mxfp4",
    "q3",
    "q3-lowrank",
    "spqr",
    "q2",
    "vq3",
    "vq2",
    "aqlm2"
);
