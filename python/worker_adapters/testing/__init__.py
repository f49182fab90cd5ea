"""What tests need from outside the package: real engines to run against.

Nothing is imported here, so production code never pays for it.
"""
