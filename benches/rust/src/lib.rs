//! Bodies of engines, made up for the benchmarks.
