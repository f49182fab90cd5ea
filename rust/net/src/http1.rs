//! HTTP/1.1 responses, read strictly and without copying bodies.
