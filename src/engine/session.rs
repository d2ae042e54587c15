//! Work in a container: a command, or a shell at a terminal, recorded as an operation with one step.
