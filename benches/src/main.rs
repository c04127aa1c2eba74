//! The benchmarks as a program.

fn main() -> std::process::ExitCode {
    cmf_benches::run(std::env::args_os())
}
