"""What adapters and their host tell whoever operates them. See docs/metrics.md and docs/logs.md."""
