//! Recipes: which terms stand for which tensors.

mod builtin;

pub use builtin::{BUILTIN_NAMES, builtin};

use crate::encode::TermParams;
use crate::error::{Error, Result};
use crate::source::TensorInfo;
use cmf_format::DType;
use serde::{Deserialize, Serialize};
use std::path::Path;
use wildmatch::WildMatch;

/// A whole recipe, as it stands in TOML and, with every default filled in, in the archive.
///
/// ```
/// use cmf_converters::recipe::Recipe;
///
/// let recipe = Recipe::from_toml(
///     r#"
///     name = "mine"
///
///     [[rule]]
///     match = ["*norm*", "*.bias"]
///     store = "keep"
///
///     [[rule]]
///     match = "*"
///     min_rank = 2
///     terms = [{ encoding = "grouped", bits = 3, group_cols = 64 }, { encoding = "low_rank", rank = 8 }]
///     "#,
/// )?;
/// assert_eq!(recipe.rules.len(), 2);
/// # Ok::<(), cmf_converters::error::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name, for people.
    pub name: String,
    /// What it is for, in a line.
    #[serde(default)]
    pub description: String,
    /// Most bytes of a unit: matrices are cut into row blocks of about this size.
    #[serde(default = "default_unit_bytes")]
    pub unit_bytes: u64,
    /// Rules; the first that matches a tensor says how it is stored. A tensor that none matches is
    /// kept as it is.
    #[serde(rename = "rule", default)]
    pub rules: Vec<Rule>,
}

fn default_unit_bytes() -> u64 {
    2 << 20
}

/// How the tensors that it matches are stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Patterns of names: `*` is any text, `?` any character.
    #[serde(rename = "match")]
    pub patterns: Patterns,
    /// Fewest extents of a tensor that it matches.
    #[serde(default)]
    pub min_rank: usize,
    /// Fewest elements of a tensor that it matches.
    #[serde(default)]
    pub min_elements: u64,
    /// Stores the elements of the source as they are; in place of terms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<Exact>,
    /// Makes each term a level of its own, which a reader may leave out with all that follow.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub progressive: bool,
    /// What wraps the sum of the terms.
    #[serde(default, skip_serializing_if = "Transforms::is_none")]
    pub transforms: Transforms,
    /// Terms, in the order in which they are fitted: each to what the terms before it left.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub terms: Vec<TermParams>,
}

/// Transforms around the terms of a matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Transforms {
    /// Scales each input by its second moment to this power before it is encoded, where second
    /// moments are known: errors then fall on the inputs that matter less. 0.25 is best for
    /// weights of equal size; 0 is none.
    pub scale: f64,
    /// Scales each input by the mean square of the weights that read it to this power, so that the
    /// weights are of more equal size: 0.5 makes them equal, 0 is none.
    pub equalise: f64,
    /// Random signs and a Hadamard matrix over the inputs.
    pub input_hadamard: bool,
    /// Random signs and Hadamard matrices of at most 64 over the outputs.
    pub output_hadamard: bool,
    /// Orders rows by what their errors cost, where that is known: units of few rows are then of rows
    /// that matter alike. Without it rows stay where they are.
    pub order_rows: bool,
    /// Seed of the signs.
    pub seed: u64,
}

impl Transforms {
    /// Whether nothing is transformed.
    pub fn is_none(&self) -> bool {
        self.scale == 0.0
            && self.equalise == 0.0
            && !self.input_hadamard
            && !self.output_hadamard
            && !self.order_rows
    }
}

/// How elements are stored that stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exact {
    /// The source's own encoding where it has one (GGUF blocks), else plain elements.
    Keep,
    /// f32, f16 and bf16 compressed; as [`Exact::Keep`] for others.
    Lossless,
}

/// What a recipe says of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Storage<'r> {
    /// Its elements stay as they are.
    Exact(Exact),
    /// A sum of terms: those of this rule.
    Terms(&'r Rule),
}

/// One pattern or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Patterns {
    /// One.
    One(String),
    /// Several, any of which matches.
    Many(Vec<String>),
}

impl Patterns {
    fn iter(&self) -> impl Iterator<Item = &String> {
        match self {
            Patterns::One(one) => std::slice::from_ref(one).iter(),
            Patterns::Many(many) => many.iter(),
        }
    }
}

impl Recipe {
    /// Parses a recipe.
    ///
    /// # Errors
    /// `BadArgument` with the place for what is no TOML, an unknown field, or terms that cannot
    /// stand together.
    pub fn from_toml(text: &str) -> Result<Self> {
        let recipe: Recipe =
            toml::from_str(text).map_err(|e| Error::bad_argument(format!("recipe: {e}")).caused_by(e))?;
        recipe.check()?;
        Ok(recipe)
    }

    /// A built-in recipe by name, or else a recipe file.
    ///
    /// # Errors
    /// `BadArgument` when it is neither; as [`Recipe::from_toml`].
    pub fn load(name_or_path: &str) -> Result<Self> {
        if let Some(recipe) = builtin(name_or_path) {
            return recipe;
        }
        let path = Path::new(name_or_path);
        let text = std::fs::read_to_string(path).map_err(|e| {
            let problem =
                format!("recipe `{name_or_path}` is not built in ({}) and no file", BUILTIN_NAMES.join(", "));
            Error::bad_argument(problem).caused_by(e)
        })?;
        Self::from_toml(&text).map_err(|e| e.file(path))
    }

    fn check(&self) -> Result<()> {
        let bad =
            |rule: usize, problem: &str| Err(Error::bad_argument(format!("recipe: rule {rule}: {problem}")));
        if !(4096..=128 << 20).contains(&self.unit_bytes) {
            return Err(Error::bad_argument("recipe: unit_bytes")
                .expected(format_args!("4096 to {}", 128 << 20))
                .found(self.unit_bytes));
        }
        for (i, rule) in self.rules.iter().enumerate() {
            if rule.store.is_some() != rule.terms.is_empty() {
                return bad(i, "needs either `store` or `terms`");
            }
            if ![rule.transforms.scale, rule.transforms.equalise].iter().all(|p| (0.0..=1.0).contains(p)) {
                return bad(i, "transforms.scale or transforms.equalise is not from 0 to 1");
            }
            if rule.terms.len() > 16 {
                return bad(i, "has more than 16 terms");
            }
        }
        Ok(())
    }

    /// The recipe with every default written out.
    ///
    /// # Errors
    /// `BadArgument` for a value that TOML cannot hold.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| Error::bad_argument(format!("recipe: {e}")).caused_by(e))
    }

    /// Puts a rule before all others: the terms of the recipe `with` for names that match.
    ///
    /// # Errors
    /// `BadArgument` when `with` has no rule for matrices.
    pub fn override_with(&mut self, pattern: &str, with: &Recipe) -> Result<()> {
        let matching = with.rules.iter().find(|r| r.patterns.iter().any(|p| p == "*"));
        let rule = matching
            .ok_or_else(|| Error::bad_argument(format!("recipe `{}` has no rule for `*`", with.name)))?;
        self.rules.insert(
            0,
            Rule { patterns: Patterns::One(pattern.into()), min_rank: 0, min_elements: 0, ..rule.clone() },
        );
        Ok(())
    }

    /// How a tensor is stored. Integers, powers of two (`f8_e8m0`: scales of another tensor) and
    /// other types without rounding stay as they are.
    pub fn storage_of(&self, tensor: &TensorInfo) -> Storage<'_> {
        match self.rules.iter().find(|rule| rule.matches(tensor)) {
            Some(Rule { store: Some(exact), .. }) => Storage::Exact(*exact),
            Some(rule) if tensor.dtype.is_float() && tensor.dtype != DType::F8E8M0 => Storage::Terms(rule),
            _ => Storage::Exact(Exact::Keep),
        }
    }
}

impl Rule {
    /// Whether the tensor is of the names and sizes that the rule is for.
    pub fn matches(&self, tensor: &TensorInfo) -> bool {
        self.min_rank <= tensor.shape.len()
            && tensor.elements().is_some_and(|n| n >= self.min_elements)
            && self.patterns.iter().any(|p| WildMatch::new(p).matches(&tensor.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, dtype: DType, shape: &[u64]) -> TensorInfo {
        TensorInfo { name: name.into(), dtype, shape: shape.to_vec() }
    }

    #[test]
    fn every_builtin_recipe_loads_and_survives_writing_out() -> Result<()> {
        for name in BUILTIN_NAMES {
            let recipe = Recipe::load(name)?;
            assert_eq!(recipe.name, *name);
            assert!(!recipe.description.is_empty(), "{name}");
            assert_eq!(Recipe::from_toml(&recipe.to_toml()?)?, recipe, "{name}");
        }
        Ok(())
    }

    #[test]
    fn first_matching_rule_wins_and_integers_are_kept() -> Result<()> {
        let recipe = Recipe::load("q4")?;
        let grouped = |t: &TensorInfo| matches!(recipe.storage_of(t), Storage::Terms(Rule { terms, .. }) if matches!(terms[..], [TermParams::Grouped(_)]));
        assert!(grouped(&tensor("model.layers.0.mlp.up_proj.weight", DType::BF16, &[64, 64])));
        assert!(!grouped(&tensor("model.norm.weight", DType::BF16, &[64])));
        assert!(!grouped(&tensor("ids", DType::I64, &[64, 64])));
        Ok(())
    }

    #[test]
    fn overrides_come_before_all_rules() -> Result<()> {
        let mut recipe = Recipe::load("q4")?;
        recipe.override_with("*down_proj*", &Recipe::load("lossless")?)?;
        let storage = recipe.storage_of(&tensor("a.down_proj.weight", DType::BF16, &[64, 64]));
        assert_eq!(storage, Storage::Exact(Exact::Lossless));
        Ok(())
    }

    #[test]
    fn rejects_unknown_fields_and_terms_that_cannot_stand_together() {
        let unknown = "name = 'x'\n[[rule]]\nmatch = '*'\nbitz = 3\nstore = 'keep'";
        let together =
            "name = 'x'\n[[rule]]\nmatch = '*'\nstore = 'keep'\nterms = [{ encoding = 'grouped', bits = 4 }]";
        let none = "name = 'x'\n[[rule]]\nmatch = '*'\nterms = []";
        for text in [unknown, together, none] {
            assert!(Recipe::from_toml(text).is_err(), "{text}");
        }
    }
}
