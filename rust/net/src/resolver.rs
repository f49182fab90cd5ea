//! Names to addresses, in a bounded number of threads.
