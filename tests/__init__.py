"""The test suites; helpers are imported from here as ``tests.<folder>.<module>``."""
