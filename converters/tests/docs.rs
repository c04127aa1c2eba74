//! docs/recipes.md and docs/import.md against the code: every parameter with its default and its
//! values, every example, every GGUF type.

use cmf_converters::encode::{
    CodebookParams, DenseParams, GroupedParams, HqqParams, LosslessParams, LowRankParams, NestedParams,
    SignLowRankParams, SparseParams, TermParams, TrellisParams,
};
use cmf_converters::gguf::{GgmlType, block_node};
use cmf_converters::recipe::{Recipe, Transforms};
use cmf_format::NodeData;
use cmf_format::encoding::{codebook, dense, grouped};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::Path;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn page(name: &str) -> std::io::Result<String> {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name))
}

/// Parameter, default, values: the rows of the table below `heading`.
fn rows(page: &str, heading: &str) -> Vec<[String; 3]> {
    let after = page.split_once(&format!("{heading}\n")).map_or("", |(_, after)| after);
    let table = after.lines().skip_while(|line| !line.starts_with("| parameter"));
    let cells = table.skip(2).take_while(|line| line.starts_with('|')).map(|line| {
        let mut cells = line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned());
        [cells.next(), cells.next(), cells.next()].map(Option::unwrap_or_default)
    });
    cells.collect()
}

/// The default of a row as a value of TOML.
fn default_of(cell: &str) -> Option<Value> {
    let text = format!("value = {}", cell.trim_matches('`'));
    let table: toml::Table = toml::from_str(&text).ok()?;
    serde_json::to_value(&table["value"]).ok()
}

/// The table below `heading` lists exactly the fields of `defaults`, each with its default; cells
/// without backticks say where the default is described.
fn check_table(page: &str, heading: &str, defaults: &impl Serialize) -> Outcome {
    let Value::Object(mut fields) = serde_json::to_value(defaults)? else { return Err("no struct".into()) };
    for [name, default, _] in rows(page, heading) {
        let name = name.trim_matches('`');
        let field = fields.remove(name).ok_or_else(|| format!("{heading}: no parameter `{name}`"))?;
        if default.starts_with('`') {
            let found = default_of(&default).ok_or_else(|| format!("{heading} {name}: {default}"))?;
            // f32 defaults print with more digits than they are written with.
            let same = match (found.as_f64(), field.as_f64()) {
                (Some(x), Some(y)) => (x - y).abs() < 1e-6 * y.abs().max(1e-6),
                _ => found == field,
            };
            assert!(same, "{heading} {name}: {found} is not {field}");
        }
    }
    assert!(fields.is_empty(), "{heading}: parameters that are not there: {:?}", fields.keys());
    Ok(())
}

#[test]
fn tables_list_every_parameter_with_its_default() -> Outcome {
    let page = page("recipes.md")?;
    check_table(&page, "### `grouped`", &GroupedParams::default())?;
    check_table(&page, "`hqq` is a table:", &HqqParams::default())?;
    check_table(&page, "### `codebook`", &CodebookParams::default())?;
    check_table(&page, "### `sparse`", &SparseParams::default())?;
    check_table(&page, "### `low_rank`", &LowRankParams::default())?;
    check_table(&page, "### `sign_low_rank`", &SignLowRankParams::default())?;
    check_table(&page, "### `nested`", &NestedParams::default())?;
    check_table(&page, "### `trellis`", &TrellisParams::default())?;
    check_table(&page, "`transforms` is a table:", &Transforms::default())?;
    check_table(&page, "### `dense`", &DenseParams::default())?;
    check_table(&page, "### `lossless`", &LosslessParams::default())
}

#[test]
fn tables_list_every_field_of_recipes_and_rules() -> Outcome {
    let page = page("recipes.md")?;
    // Fields without a default must be there; what is written back shows the others.
    let whole = "name = 'n'\n[[rule]]\nmatch = '*'\nstore = 'keep'\n[[rule]]\nmatch = '*'\nprogressive = true\ntransforms = { seed = 1, input_hadamard = true }\nterms = [{ encoding = 'dense' }]";
    let recipe = serde_json::to_value(Recipe::from_toml(whole)?)?;
    let fields = |value: &Value| value.as_object().cloned().unwrap_or_default();
    let documented = |heading| -> Vec<String> {
        let mut names: Vec<_> =
            rows(&page, heading).iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
        names.sort();
        names
    };
    let sorted = |map: Map<String, Value>| {
        let mut names: Vec<_> = map.into_iter().map(|(name, _)| name).collect();
        names.sort();
        names
    };
    assert_eq!(documented("## Recipe"), sorted(fields(&recipe)));
    let mut rule = fields(&recipe["rule"][0]);
    rule.extend(fields(&recipe["rule"][1]));
    assert_eq!(documented("## Rule"), sorted(rule));
    let unit_bytes = rows(&page, "## Recipe").into_iter().find(|row| row[0] == "`unit_bytes`");
    assert_eq!(unit_bytes.and_then(|row| default_of(&row[1])), Some(recipe["unit_bytes"].clone()));
    for bytes in [4096, 134_217_728] {
        Recipe::from_toml(&format!("unit_bytes = {bytes}\n{whole}"))?;
    }
    for bytes in [4095, 134_217_729] {
        assert!(Recipe::from_toml(&format!("unit_bytes = {bytes}\n{whole}")).is_err());
    }
    Ok(())
}

/// The names that an enum has, as its deserialiser lists them when it meets another.
fn variants(encoding: &str, parameter: &str) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let term = json!({ "encoding": encoding, parameter: "nonsense" });
    let error = serde_json::from_value::<TermParams>(term).err().ok_or("nonsense is a value")?.to_string();
    let (_, list) = error.split_once("expected ").ok_or_else(|| error.clone())?;
    Ok(list.split('`').skip(1).step_by(2).map(str::to_owned).collect())
}

#[test]
fn every_name_of_every_choice_is_described_in_its_section() -> Outcome {
    let page = page("recipes.md")?;
    let section = |heading: &str| {
        let (_, after) = page.split_once(&format!("{heading}\n"))?;
        after.split("\n### ").next().map(str::to_owned)
    };
    for (encoding, parameters) in [
        ("grouped", &["codes", "range", "zero", "method"][..]),
        ("sparse", &["select", "op", "layout"]),
        ("dense", &["dtype"]),
    ] {
        let text = section(&format!("### `{encoding}`")).ok_or("no section")?;
        for parameter in parameters {
            for name in variants(encoding, parameter)? {
                let described =
                    [format!("\"{name}\""), format!("{{ {name} = ")].iter().any(|form| text.contains(form));
                assert!(described, "{encoding}.{parameter}: `{name}` is not described");
            }
        }
    }
    let (_, stores) = page.split_once("## Stores\n").ok_or("no section about stores")?;
    for name in variants("grouped", "scale")? {
        assert!(
            stores.contains(&format!("\"{name}\"")) || stores.contains(&format!("{{ {name} = ")),
            "{name}"
        );
    }
    Ok(())
}

#[test]
fn examples_are_recipes() -> Outcome {
    let page = page("recipes.md")?;
    let blocks: Vec<_> =
        page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() >= 2);
    for block in blocks {
        Recipe::from_toml(block)?;
    }
    Ok(())
}

#[test]
fn every_block_type_of_gguf_is_in_the_row_of_what_it_becomes() -> Outcome {
    let page = page("import.md")?;
    let row = |ends: &str| {
        page.lines().find(|line| line.trim_end_matches(" |").ends_with(ends)).unwrap_or_default()
    };
    for &ty in GgmlType::ALL {
        let cols = ty.block_elems();
        let node = block_node(ty, 1, cols, &vec![0; usize::try_from(ty.block_bytes())?])?;
        let is_grouped_again =
            |node: &NodeData| node.children.iter().any(|child| child.encoding == grouped::ID);
        let row = match node.encoding {
            dense::ID => row("`dense`"),
            codebook::ID => row("shared by all its tensors"),
            grouped::ID if is_grouped_again(&node) => row("scales `grouped` again"),
            _ => row("| `grouped`"),
        };
        assert!(row.contains(&format!("`{}`", ty.name())), "{} is not in: {row}", ty.name());
    }
    Ok(())
}
