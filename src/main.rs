//! The `tallybook` program. All of it is in the library, where tests reach it.

/// Decoding a log is many small allocations (docs/decisions/0021).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // Huge pages cost more than the program does: 60 MiB that the kernel clears, for a store of a few events (0021).
    let _slower = rustix::thread::disable_transparent_huge_pages(true);
    tallybook::cli::main()
}
