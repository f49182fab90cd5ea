"""What adapters and their host tell whoever operates them. See docs/logs.md."""
