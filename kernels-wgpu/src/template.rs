//! WGSL from the files in `wgsl/`: imports, macros, conditions and unrolled loops, all by line.
//!
//! ```text
//! #import NAME            the file NAME.wgsl, here
//! #def NAME ... #end      a macro
//! #use NAME               its lines, here
//! #if EXPR ... #else ... #end
//! #for NAME in EXPR..EXPR ... #end
//! #let NAME = EXPR        NAME from here on
//! ${EXPR}                 the number; ${xyzw[EXPR]} is a component's name
//! ```
//!
//! Expressions are integers, names, `+ - * / % == != < <= > >= && ||` and parentheses. An unknown
//! name is an error, so a permutation says every number that its files ask for.

use crate::error::{Error, Result};
use std::collections::HashMap;

/// The files of `wgsl/` by name.
const FILES: &[(&str, &str)] = &[
    ("params", include_str!("../wgsl/params.wgsl")),
    ("numbers", include_str!("../wgsl/numbers.wgsl")),
    ("dense", include_str!("../wgsl/dense.wgsl")),
    ("grouped", include_str!("../wgsl/grouped.wgsl")),
    ("trellis", include_str!("../wgsl/trellis.wgsl")),
    ("codebook", include_str!("../wgsl/codebook.wgsl")),
    ("nested", include_str!("../wgsl/nested.wgsl")),
    ("sign_low_rank", include_str!("../wgsl/sign_low_rank.wgsl")),
    ("multiply", include_str!("../wgsl/multiply.wgsl")),
    ("decode", include_str!("../wgsl/decode.wgsl")),
    ("sparse", include_str!("../wgsl/sparse.wgsl")),
    ("outer", include_str!("../wgsl/outer.wgsl")),
    ("transform_params", include_str!("../wgsl/transform_params.wgsl")),
    ("transform", include_str!("../wgsl/transform.wgsl")),
    ("hadamard", include_str!("../wgsl/hadamard.wgsl")),
    ("layout", include_str!("../wgsl/layout.wgsl")),
    ("butterfly", include_str!("../wgsl/butterfly.wgsl")),
    ("fill", include_str!("../wgsl/fill.wgsl")),
];

/// Most nested imports, macros and loops: the files here need far fewer.
const DEPTH: usize = 32;

/// The WGSL of kernel `name` in the permutation that `numbers` make, as the crate compiles it: any
/// WebGPU takes it. `wgsl/permutations.toml` lists permutations.
///
/// # Errors
/// `Shader` for a kernel or number that is not there.
pub fn wgsl(name: &str, numbers: &[(&str, i64)]) -> Result<String> {
    compose(name, numbers)
}

/// The WGSL of file `name` with `numbers`.
pub(crate) fn compose(name: &str, numbers: &[(&str, i64)]) -> Result<String> {
    let numbers = numbers.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    let mut composer = Composer { numbers, macros: HashMap::new(), out: String::new() };
    composer.lines(&file(name)?.lines().collect::<Vec<_>>(), 0)?;
    Ok(composer.out)
}

fn file(name: &str) -> Result<&'static str> {
    let found = FILES.iter().find(|(file, _)| *file == name);
    found.map(|(_, text)| *text).ok_or_else(|| Error::shader(format!("no file `{name}`")))
}

struct Composer<'t> {
    numbers: HashMap<String, i64>,
    macros: HashMap<&'t str, Vec<&'t str>>,
    out: String,
}

impl<'t> Composer<'t> {
    fn lines(&mut self, lines: &[&'t str], depth: usize) -> Result<()> {
        if depth > DEPTH {
            return Err(Error::shader("too deeply nested"));
        }
        let mut rest = lines;
        while let Some((line, after)) = rest.split_first() {
            rest = after;
            let Some(directive) = line.trim_start().strip_prefix('#') else {
                self.line(line)?;
                continue;
            };
            let (word, argument) = directive.split_once(' ').unwrap_or((directive, ""));
            let argument = argument.trim();
            match word {
                "import" => {
                    let name = self.argument(argument)?;
                    self.lines(&file(&name)?.lines().collect::<Vec<_>>(), depth + 1)?;
                }
                "def" => {
                    let (body, after) = block(after)?;
                    self.macros.insert(argument, body.to_vec());
                    rest = after;
                }
                "use" => {
                    let found = self.macros.get(argument).cloned();
                    let body = found.ok_or_else(|| Error::shader(format!("no macro `{argument}`")))?;
                    self.lines(&body, depth + 1)?;
                }
                "let" => {
                    let (name, expression) = argument
                        .split_once(" = ")
                        .ok_or_else(|| Error::shader(format!("`{argument}` is no number")))?;
                    let value = self.value(expression)?;
                    self.numbers.insert(name.to_owned(), value);
                }
                "if" => {
                    let (body, after) = block(after)?;
                    let (yes, no) = split_else(body);
                    let taken = if self.value(argument)? != 0 { yes } else { no };
                    self.lines(taken, depth + 1)?;
                    rest = after;
                }
                "for" => {
                    let (body, after) = block(after)?;
                    let bad = || Error::shader(format!("`{argument}` is no loop"));
                    let (name, range) = argument.split_once(" in ").ok_or_else(bad)?;
                    let (start, end) = range.split_once("..").ok_or_else(bad)?;
                    let outer = self.numbers.get(name).copied();
                    for i in self.value(start)?..self.value(end)? {
                        self.numbers.insert(name.to_owned(), i);
                        self.lines(body, depth + 1)?;
                    }
                    match outer {
                        Some(value) => self.numbers.insert(name.to_owned(), value),
                        None => self.numbers.remove(name),
                    };
                    rest = after;
                }
                _ => return Err(Error::shader(format!("unknown directive `{}`", line.trim()))),
            }
        }
        Ok(())
    }

    /// A file's name, which may be that of the encoding in hand.
    fn argument(&self, argument: &str) -> Result<String> {
        match argument {
            "ENCODING" => {
                let index = usize::try_from(self.value("ENCODING")?).unwrap_or(usize::MAX);
                let name = ENCODINGS.get(index);
                name.map(|n| (*n).to_owned()).ok_or_else(|| Error::shader("no such encoding"))
            }
            name => Ok(name.to_owned()),
        }
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let code = line.split_once("//").map_or(line, |(code, _)| code).trim_end();
        if code.is_empty() {
            return Ok(());
        }
        let mut rest = code;
        while let Some((before, after)) = rest.split_once("${") {
            let (expression, after) =
                after.split_once('}').ok_or_else(|| Error::shader(format!("`{code}` is not closed")))?;
            self.out.push_str(before);
            match expression.strip_prefix("xyzw[").and_then(|e| e.strip_suffix(']')) {
                Some(index) => {
                    let index = self.value(index)?.rem_euclid(4);
                    self.out.push(match index {
                        0 => 'x',
                        1 => 'y',
                        2 => 'z',
                        _ => 'w',
                    });
                }
                None => self.out.push_str(&self.value(expression)?.to_string()),
            }
            rest = after;
        }
        self.out.push_str(rest);
        self.out.push('\n');
        Ok(())
    }

    fn value(&self, expression: &str) -> Result<i64> {
        let mut parser = Parser { text: expression.trim(), numbers: &self.numbers, depth: 0 };
        let value = parser.binary(0)?;
        match parser.text.is_empty() {
            true => Ok(value),
            false => Err(Error::shader(format!("`{expression}` is no expression"))),
        }
    }
}

/// Encodings whose rows are decoded four columns at a time, in the order of the number `ENCODING`.
pub const ENCODINGS: &[&str] = &["dense", "grouped", "trellis", "codebook", "nested", "sign_low_rank"];

/// The lines before the `#end` that closes a block, and those after it.
fn block<'l, 't>(lines: &'l [&'t str]) -> Result<(&'l [&'t str], &'l [&'t str])> {
    let mut open = 0;
    for (i, line) in lines.iter().enumerate() {
        match line.trim_start() {
            line if line.starts_with("#end") && open == 0 => return Ok((&lines[..i], &lines[i + 1..])),
            line if line.starts_with("#end") => open -= 1,
            line if ["#if", "#for", "#def"].iter().any(|d| line.starts_with(d)) => open += 1,
            _ => {}
        }
    }
    Err(Error::shader("a block is not closed"))
}

fn split_else<'l, 't>(lines: &'l [&'t str]) -> (&'l [&'t str], &'l [&'t str]) {
    let mut open = 0;
    for (i, line) in lines.iter().enumerate() {
        match line.trim_start() {
            line if line.starts_with("#else") && open == 0 => return (&lines[..i], &lines[i + 1..]),
            line if line.starts_with("#end") => open -= 1,
            line if ["#if", "#for", "#def"].iter().any(|d| line.starts_with(d)) => open += 1,
            _ => {}
        }
    }
    (lines, &[])
}

/// Binary operators, those that bind weakest first.
const OPERATORS: &[&[&str]] =
    &[&["||"], &["&&"], &["==", "!=", "<=", ">=", "<", ">"], &["+", "-"], &["*", "/", "%"]];

struct Parser<'e> {
    text: &'e str,
    numbers: &'e HashMap<String, i64>,
    depth: usize,
}

impl Parser<'_> {
    fn binary(&mut self, strength: usize) -> Result<i64> {
        let Some(operators) = OPERATORS.get(strength) else { return self.single() };
        let mut left = self.binary(strength + 1)?;
        'next: loop {
            self.text = self.text.trim_start();
            for operator in *operators {
                if let Some(rest) = self.text.strip_prefix(operator) {
                    self.text = rest;
                    let right = self.binary(strength + 1)?;
                    left = apply(operator, left, right)
                        .ok_or_else(|| Error::shader(format!("{left} {operator} {right} has no value")))?;
                    continue 'next;
                }
            }
            return Ok(left);
        }
    }

    fn single(&mut self) -> Result<i64> {
        self.text = self.text.trim_start();
        if let Some(rest) = self.text.strip_prefix('(') {
            self.depth += 1;
            if self.depth > DEPTH {
                return Err(Error::shader("too many parentheses"));
            }
            self.text = rest;
            let value = self.binary(0)?;
            self.text = self.text.trim_start();
            self.text =
                self.text.strip_prefix(')').ok_or_else(|| Error::shader("a parenthesis is not closed"))?;
            return Ok(value);
        }
        let end = self.text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let (word, rest) = self.text.split_at(end.unwrap_or(self.text.len()));
        self.text = rest;
        let number = word.parse().ok().or_else(|| self.numbers.get(word).copied());
        number.ok_or_else(|| Error::shader(format!("unknown number `{word}`")))
    }
}

fn apply(operator: &str, left: i64, right: i64) -> Option<i64> {
    Some(match operator {
        "||" => i64::from(left != 0 || right != 0),
        "&&" => i64::from(left != 0 && right != 0),
        "==" => i64::from(left == right),
        "!=" => i64::from(left != right),
        "<=" => i64::from(left <= right),
        ">=" => i64::from(left >= right),
        "<" => i64::from(left < right),
        ">" => i64::from(left > right),
        "+" => left.checked_add(right)?,
        "-" => left.checked_sub(right)?,
        "*" => left.checked_mul(right)?,
        "/" => left.checked_div(right)?,
        _ => left.checked_rem(right)?,
    })
}
