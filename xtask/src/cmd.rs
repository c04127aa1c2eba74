//! Running other programs: each command line is printed before it runs, and a failure names it.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A command that is shown, run to its end, and turned into an error when it fails.
pub(crate) struct Cmd {
    inner: Command,
    shown: String,
    /// The folder it runs in, left out of the paths that are shown.
    folder: String,
}

impl Cmd {
    /// `program` in the folder `dir`.
    pub(crate) fn new(program: impl AsRef<OsStr>, dir: &Path) -> Self {
        let mut inner = Command::new(&program);
        inner.current_dir(dir).stdin(Stdio::null());
        let folder = format!("{}/", dir.display());
        let shown = program.as_ref().to_string_lossy().replace(&folder, "");
        Self { inner, shown, folder }
    }

    /// The cargo that runs this program, in the folder `dir`.
    pub(crate) fn cargo(dir: &Path) -> Self {
        let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut cmd = Self::new(program, dir);
        cmd.shown = "cargo".to_owned();
        cmd
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.shown.push(' ');
        self.shown.push_str(&arg.as_ref().to_string_lossy().replace(&self.folder, ""));
        self.inner.arg(arg);
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        let value_shown = value.as_ref().to_string_lossy().replace(&self.folder, "");
        self.shown = format!("{key}={value_shown} {}", self.shown);
        self.inner.env(key, value);
        self
    }

    /// Runs with output passed through; fails unless the exit status is 0.
    pub(crate) fn run(mut self) -> Result<()> {
        println!("$ {}", self.shown);
        let status = self.inner.status().with_context(|| format!("cannot start `{}`", self.shown))?;
        if !status.success() {
            bail!("`{}` failed: {status}", self.shown);
        }
        Ok(())
    }

    /// Runs silently and gives stdout; on failure the error carries stderr.
    pub(crate) fn output(self) -> Result<String> {
        self.output_up_to(0)
    }

    /// As `output`, where the exit statuses 0 to `highest` are good.
    pub(crate) fn output_up_to(mut self, highest: i32) -> Result<String> {
        let output = self.inner.output().with_context(|| format!("cannot start `{}`", self.shown))?;
        if !output.status.code().is_some_and(|code| (0..=highest).contains(&code)) {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("`{}` failed: {}\n{}", self.shown, output.status, stderr.trim_end());
        }
        String::from_utf8(output.stdout).with_context(|| format!("`{}` printed invalid UTF-8", self.shown))
    }

    /// Runs silently; whether the exit status is 0, and all that was printed.
    pub(crate) fn outcome(mut self) -> Result<(bool, String)> {
        let output = self.inner.output().with_context(|| format!("cannot start `{}`", self.shown))?;
        let printed = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&printed).into_owned()))
    }

    /// Runs silently; true when the program exists and exits with 0.
    pub(crate) fn succeeds(mut self) -> bool {
        self.inner.stdout(Stdio::null()).stderr(Stdio::null());
        self.inner.status().is_ok_and(|status| status.success())
    }
}
