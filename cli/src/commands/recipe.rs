//! `cmf recipe`

use crate::{Answer, print, text};
use cmf_converters::recipe::{BUILTIN_NAMES, Recipe};
use serde::Serialize;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cmf recipe                       list the built-in recipes
  cmf recipe q4 > my-recipe.toml   start a recipe of your own")]
pub(crate) struct Args {
    /// A built-in recipe or a TOML file, printed with every default written out
    name: Option<String>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct List {
    recipes: Vec<Recipe>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let names = match &args.name {
        Some(name) => vec![name.as_str()],
        None => BUILTIN_NAMES.to_vec(),
    };
    let recipes = names.into_iter().map(Recipe::load).collect::<Result<Vec<_>, _>>()?;
    let shown = match (args.json, args.name.is_some()) {
        (true, _) => text::json(&List { recipes })?,
        (false, true) => recipes.iter().map(Recipe::to_toml).collect::<Result<String, _>>()?,
        (false, false) => {
            let rows: Vec<_> =
                recipes.into_iter().map(|r| format!("{:<13}  {}\n", r.name, r.description)).collect();
            rows.concat()
        }
    };
    print(&shown)?;
    Ok(Answer::Yes)
}
