//! Every permutation of `wgsl/permutations.toml` is valid WGSL, and none asks for more than WebGPU
//! promises: no GPU is needed.

use std::collections::BTreeMap;
use toml::{Table, Value};

type TestResult = Result<(), Box<dyn std::error::Error>>;
type Numbers = BTreeMap<String, i64>;

/// Numbers of a table, each with each other one.
fn product(table: &Table, base: &[Numbers]) -> Vec<Numbers> {
    let mut all = base.to_vec();
    for (name, value) in table {
        let values: Vec<i64> = match value {
            Value::Integer(n) => vec![*n],
            Value::Array(list) => list.iter().filter_map(Value::as_integer).collect(),
            _ => continue,
        };
        let with = |numbers: &Numbers| {
            let name = name.clone();
            let numbers = numbers.clone();
            values.clone().into_iter().map(move |value| {
                let mut numbers = numbers.clone();
                numbers.insert(name.clone(), value);
                numbers
            })
        };
        all = all.iter().flat_map(with).collect();
    }
    all
}

fn check(kernel: &str, numbers: &Numbers) -> TestResult {
    let mut numbers = numbers.clone();
    if let (Some(bits), false) = (numbers.get("STATE").or(numbers.get("BITS")), numbers.contains_key("MASK"))
    {
        numbers.insert("MASK".into(), (1 << bits) - 1);
    }
    let lower = numbers.get("LOWER_BITS").map(|bits| (1 << bits) - 1);
    numbers.extend(lower.map(|mask| ("LOWER_MASK".to_owned(), mask)));
    if let (Some(state), Some(step), Some(tile)) =
        (numbers.get("STATE"), numbers.get("STEP"), numbers.get("R").copied())
    {
        let way = numbers.get("WAY").copied();
        let own = if way == Some(1) && tile * step % 32 == 0 { tile * step / 32 } else { 0 };
        let split = if own > 0 || (32 - state) / step + 1 >= tile { tile } else { tile.min(4) };
        numbers.insert("OWN".into(), own);
        numbers.insert("SPLITS".into(), tile / split);
        numbers.insert("SPLIT".into(), split);
    }
    for name in ["EAGER", "ASKS", "SHARES", "WIDE"] {
        numbers.entry(name.into()).or_insert(0);
    }
    numbers.entry("TILES".into()).or_insert(1);
    let list: Vec<(&str, i64)> = numbers.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let source = cmf_kernels_wgpu::wgsl(kernel, &list).map_err(|e| format!("{kernel} {list:?}: {e}"))?;
    let module = naga::front::wgsl::parse_str(&source)
        .map_err(|e| format!("{kernel} {list:?}: {}", e.emit_to_string(&source)))?;
    let flags = naga::valid::ValidationFlags::all();
    let mut capabilities = naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    if numbers.get("SUBGROUPS") == Some(&1) {
        capabilities |= naga::valid::Capabilities::SUBGROUP;
    }
    if numbers.get("WIDE") == Some(&1) {
        capabilities |= naga::valid::Capabilities::SHADER_INT64;
    }
    let info = naga::valid::Validator::new(flags, capabilities).validate(&module);
    info.map_err(|e| format!("{kernel} {list:?}: {}", e.emit_to_string(&source)))?;
    let entry = module.entry_points.first().ok_or("no entry point")?;
    assert!(entry.workgroup_size.iter().product::<u32>() <= 256, "{kernel}: invocations");
    let mut shared = 0;
    let mut storage = 0;
    for (_, variable) in module.global_variables.iter() {
        match variable.space {
            naga::AddressSpace::WorkGroup => {
                shared += module.types[variable.ty].inner.size(module.to_ctx());
            }
            naga::AddressSpace::Storage { .. } => storage += 1,
            _ => {}
        }
    }
    assert!(shared <= 16384, "{kernel}: {shared} bytes of workgroup memory");
    assert!(storage <= 8, "{kernel}: {storage} storage buffers");
    Ok(())
}

#[test]
fn permutations_are_valid() -> TestResult {
    let file: Table = include_str!("../wgsl/permutations.toml").parse()?;
    let table = |value: Option<&Value>| value.and_then(Value::as_table).cloned().unwrap_or_default();
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let defaults = table(file.get("defaults"));
    let mut checked = 0;
    for set in list(file.get("set")) {
        let set = table(Some(&set));
        let encoding = set.get("encoding").and_then(Value::as_str).ok_or("no encoding")?;
        let encoding =
            cmf_kernels_wgpu::ENCODINGS.iter().position(|e| *e == encoding).ok_or("which encoding")?;
        let mut all = defaults.clone();
        all.extend(set);
        all.insert("ENCODING".into(), Value::Integer(encoding as i64));
        for (kernel, form) in table(file.get("kernels")) {
            for shape in list(form.as_table().and_then(|f| f.get("shapes"))) {
                for numbers in product(&all, &product(&table(Some(&shape)), &[Numbers::new()])) {
                    check(&kernel, &numbers)?;
                    checked += 1;
                }
            }
        }
    }
    for alone in list(file.get("alone")) {
        let alone = table(Some(&alone));
        let kernel = alone.get("kernel").and_then(Value::as_str).ok_or("no kernel")?;
        for numbers in product(&alone, &[Numbers::from([("ZERO".into(), 0), ("SHIFT".into(), 1)])]) {
            let mut all = Numbers::from([("LEVELS".into(), 1), ("VEC".into(), 0)]);
            all.extend(numbers);
            check(kernel, &all)?;
            checked += 1;
        }
    }
    assert!(checked > 150, "{checked} permutations");
    Ok(())
}

/// Fields of a structure, each with its type, of Rust or of WGSL.
fn fields(text: &str, structure: &str) -> Result<Vec<(String, String)>, String> {
    let start = format!("struct {structure} {{\n");
    let (_, rest) = text.split_once(&start).ok_or_else(|| format!("no {structure}"))?;
    let (body, _) = rest.split_once("\n}").ok_or_else(|| format!("{structure} has no end"))?;
    let lines = body.lines().filter_map(|line| line.trim().trim_end_matches(',').split_once(": "));
    let named = lines.filter(|(name, _)| !name.starts_with("//"));
    Ok(named.map(|(name, ty)| (name.trim_start_matches("pub(crate) ").to_owned(), ty.to_owned())).collect())
}

/// All are scalars of four bytes, so that the same fields in the same order are the same bytes.
#[test]
fn uniforms_have_the_same_fields_in_rust() -> TestResult {
    let rust = include_str!("../src/params.rs");
    for (ours, theirs, text) in [
        ("TermParams", "Term", include_str!("../wgsl/params.wgsl")),
        ("Params", "Params", include_str!("../wgsl/params.wgsl")),
        ("TransformParams", "Params", include_str!("../wgsl/transform_params.wgsl")),
        ("ButterflyParams", "Params", include_str!("../wgsl/butterfly.wgsl")),
        ("FillParams", "Params", include_str!("../wgsl/fill.wgsl")),
        ("OuterParams", "Params", include_str!("../wgsl/outer.wgsl")),
    ] {
        let mut theirs = fields(text, theirs)?;
        // Terms follow as records of their own.
        theirs.retain(|(name, _)| name != "terms");
        assert!(!theirs.is_empty(), "{ours}");
        assert!(theirs.iter().all(|(_, ty)| ty == "u32" || ty == "f32"), "{ours}: {theirs:?}");
        assert_eq!(fields(rust, ours)?, theirs, "{ours}");
    }
    Ok(())
}
