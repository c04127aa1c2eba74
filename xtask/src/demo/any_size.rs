//! The last part of the demo: one file of any size, measured and talked to under several budgets.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Cli, FOLDER, Model, Speech, archive, json};

/// Budgets of the answers.
const ANSWERED: [&str; 3] = ["2.5bpw", "4bpw", "8bpw"];
/// Budgets of the picture, those of the answers among them.
const MEASURED: &str = "min,2.5bpw,3bpw,4bpw,6bpw,8bpw";
const PROMPT: &str = "What is the capital of France?";
/// Most tokens of an answer.
const ANSWER_TOKENS: &str = "24";
/// Four windows. More than the widest matrix has inputs (1536), so that its moments have full rank.
const CALIBRATION_TOKENS: &str = "2048";
const EVALUATION_TOKENS: &str = "2048";
/// What the calibration reads and what the evaluation does: different pages of one subject.
const CALIBRATION_PAGES: [&str; 6] = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/import.md",
    "docs/recipes.md",
    "docs/budgets.md",
    "docs/running.md",
];
const EVALUATION_PAGES: [&str; 3] = ["spec/container.md", "spec/security.md", "spec/transforms.md"];

/// Converts the model to one file of every size and shows what it is worth at some of them.
pub(super) fn show(cmf: &Cli<'_>, model: &Model) -> Result<()> {
    println!("\n--- any-size");
    let file = archive("any-size");
    let convert = cmf.command().arg("convert").arg(cmf.model).arg("-o").arg(&file);
    let convert = convert.args(["--recipe", "any-size", "--force", "--no-resume"]);
    if matches!(model.speech, Speech::None) {
        println!("data-free: `cmf calibrate` does not run models of this kind");
        convert.run()?;
        return plan(cmf, &file);
    }
    println!(
        "with the moments of a short text, {CALIBRATION_TOKENS} tokens of this repository's documentation"
    );
    let text = text(cmf.root, "calibration.txt", &CALIBRATION_PAGES)?;
    let moments = archive("moments");
    let calibrate = cmf.command().arg("calibrate").arg(cmf.model).arg("--text").arg(text);
    let calibrate = calibrate.args(["--tokens", CALIBRATION_TOKENS, "--sensitivity", "0", "--force", "-o"]);
    calibrate.arg(&moments).run()?;
    convert.arg("--calibration").arg(&moments).run()?;
    cmf.command().arg("verify").arg(&file).run()?;
    plan(cmf, &file)?;
    let report = evaluate(cmf, &file)?;
    let answers = ANSWERED.iter().map(|budget| cmf.answer(&file, budget, &model.speech));
    let answers = answers.collect::<Result<Vec<_>>>()?;
    print_table(model, &report, &answers)
}

/// The plans of the budgets, and a picture of all plans.
fn plan(cmf: &Cli<'_>, file: &Path) -> Result<()> {
    let picture = Path::new(FOLDER).join("plans.svg");
    let budgets = ANSWERED.join(",");
    let plan = cmf.command().arg("plan").arg(file).args(["--budget", &budgets, "--force", "--plot"]);
    plan.arg(&picture).run()?;
    println!("every plan of the file: {}", picture.display());
    Ok(())
}

/// Predictions at all budgets against those of the source, and their picture.
fn evaluate(cmf: &Cli<'_>, file: &Path) -> Result<Value> {
    let text = text(cmf.root, "evaluation.txt", &EVALUATION_PAGES)?;
    let picture = Path::new(FOLDER).join("any-size.svg");
    println!("measuring predictions at {MEASURED}");
    let eval = cmf.command().arg("eval").arg(file).arg("--text").arg(text).arg("--baseline").arg(cmf.model);
    let eval =
        eval.args(["--tokens", EVALUATION_TOKENS, "--budget", MEASURED, "--json", "--quiet", "--force"]);
    let report = json(eval.arg("--plot").arg(&picture), 0)?;
    println!("quality against bytes: {}", picture.display());
    Ok(report)
}

/// Writes the pages into one file of the demo's folder and gives its path.
fn text(root: &Path, name: &str, pages: &[&str]) -> Result<PathBuf> {
    let read = |page: &&str| {
        let path = root.join(page);
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    let content = pages.iter().map(read).collect::<Result<Vec<_>>>()?.join("\n");
    let path = Path::new(FOLDER).join(name);
    std::fs::write(root.join(&path), content).with_context(|| path.display().to_string())?;
    Ok(path)
}

impl Cli<'_> {
    /// What the model says under a budget.
    fn answer(&self, file: &Path, budget: &str, speech: &Speech) -> Result<String> {
        let run = self.command().arg("run").arg(file).args(["--budget", budget, "--prompt", PROMPT]);
        let run = run.args(["--tokens", ANSWER_TOKENS, "--temperature", "0", "--json", "--quiet"]);
        // A made-up model has no chat template.
        let run = if matches!(speech, Speech::Noise) { run.arg("--raw") } else { run };
        let lines = run.output()?;
        let summary = lines.lines().last().context("cmf run prints nothing")?;
        let summary: Value = serde_json::from_str(summary).context("cmf run prints no JSON")?;
        Ok(summary["text"].as_str().context("cmf run gives no text")?.to_owned())
    }
}

fn print_table(model: &Model, report: &Value, answers: &[String]) -> Result<()> {
    let number = |row: &Value, key: &str| row[key].as_f64().with_context(|| format!("eval gives no {key}"));
    println!("\n{}: one file, any size", model.about);
    println!(
        "\n{:<8} {:>12} {:>12} {:>11} {:>14}",
        "budget", "resident", "bits/weight", "perplexity", "KL divergence"
    );
    for row in report["results"].as_array().context("eval gives no results")? {
        println!(
            "{:<8} {:>9.2} MB {:>12.2} {:>11.2} {:>14.4}",
            row["budget"].as_str().unwrap_or_default(),
            number(row, "resident_bytes")? / 1e6,
            number(row, "bits_per_weight")?,
            number(row, "perplexity")?,
            number(row, "kl_mean")?,
        );
    }
    println!("{:<34} {:>11.2}", "source", number(&report["baseline"], "perplexity")?);
    if matches!(model.speech, Speech::Answers) {
        println!("\n{PROMPT}");
        for (budget, answer) in ANSWERED.iter().zip(answers) {
            println!("  {budget:<7} {}", answer.trim().replace('\n', " "));
        }
    }
    println!(
        "\nKL divergence: from what the source predicts, nats a token. Measured on {} tokens of\n\
         {},\n\
         the second halves of windows of {}.",
        number(report, "windows")? * number(report, "context")?,
        EVALUATION_PAGES.join(", "),
        number(report, "context")?,
    );
    Ok(())
}
