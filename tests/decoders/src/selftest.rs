//! A planted bug, behind four bytes that only a fuzzer that sees what the program compares can find: the runner expects it
//! to be found, and so that a fuzzer which is blind turns red.

/// Panics on one input among four thousand million.
pub fn run(bytes: &[u8]) {
    let Some((magic, rest)) = bytes.split_first_chunk::<4>() else {
        return;
    };
    let word = u32::from_le_bytes(*magic);
    if word == 0x5442_4631 && rest.len() > 1 {
        panic!("the planted bug was found");
    }
}
