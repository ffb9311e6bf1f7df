//! The supervisor of one sandbox start; see `isolation::supervisor`.

fn main() -> std::process::ExitCode {
    isolation::supervisor::main()
}
