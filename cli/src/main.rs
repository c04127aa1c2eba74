//! The `cmf` command.

fn main() -> std::process::ExitCode {
    cmf_cli::run(std::env::args_os())
}
