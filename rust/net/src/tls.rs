//! The TLS client configuration: verification on, TLS 1.2 or newer.
