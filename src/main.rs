//! The `tallybook` program. All of it is in the library, where tests reach it.

fn main() -> std::process::ExitCode {
    tallybook::cli::main()
}
