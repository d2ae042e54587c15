//! The `tallybook` program. All of it is in the library, where tests reach it.

/// Decoding a log is many small allocations (docs/decisions/0021).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // 60 MiB that the kernel would clear for a store of a few events (docs/decisions/0021).
    tallybook::huge_pages::turn_off();
    tallybook::cli::main()
}
