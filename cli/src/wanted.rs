//! What is wanted of tensors, by patterns of their names.

use cmf_loader::Want;
use wildmatch::WildMatch;

/// Patterns of names, in which `*` is any text and `?` any character.
#[derive(Clone)]
pub(crate) struct Patterns(Vec<WildMatch>);

impl Patterns {
    pub(crate) fn new(patterns: &[String]) -> Self {
        Self(patterns.iter().map(|pattern| WildMatch::new(pattern)).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a pattern matches.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(name))
    }

    /// Tensors that match are `there`, others `elsewhere`.
    pub(crate) fn want(&self, name: &str, there: Want, elsewhere: Want) -> Want {
        if self.has(name) { there } else { elsewhere }
    }

    /// An error for the first pattern that no name matches.
    pub(crate) fn check<'n>(&self, names: impl Iterator<Item = &'n str> + Clone) -> anyhow::Result<()> {
        for pattern in &self.0 {
            anyhow::ensure!(names.clone().any(|name| pattern.matches(name)), "no tensor matches `{pattern}`");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_choose_by_name() {
        let patterns = Patterns::new(&["lm_head.*".into(), "layers.?.up".into()]);
        let want = |name| patterns.want(name, Want::Always, Want::Budget);
        assert_eq!(want("lm_head.weight"), Want::Always);
        assert_eq!((want("layers.3.up"), want("layers.13.up")), (Want::Always, Want::Budget));
        assert!(patterns.check(["lm_head.a", "layers.1.up"].into_iter()).is_ok());
        assert!(patterns.check(["lm_head.a"].into_iter()).is_err());
    }
}
