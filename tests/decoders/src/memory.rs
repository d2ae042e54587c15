//! How much memory a decoder takes: a length that is only claimed must not be believed.

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What a decoder may take whatever it is given: serde itself believes a claimed count up to 1 MiB, at each of a few
/// levels.
const FREE: usize = 5 << 20;
/// What it may take besides for each byte of its input: the shortest encodings of the largest values.
const PER_BYTE: usize = 1024;

/// Decodes, and panics where that took more memory at once than the input can justify.
pub fn bounded<T>(input_len: usize, decode: impl FnOnce() -> T) -> T {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let decoded = decode();
    let taken = ALLOCATOR.peak_usage().saturating_sub(before);
    let allowed = FREE + PER_BYTE * input_len;
    assert!(
        taken <= allowed,
        "{input_len} bytes made it take {taken} bytes of memory at once; {allowed} are allowed"
    );
    decoded
}
