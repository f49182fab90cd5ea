"""Hours of work in minutes: load, faults and cancels, and what of them stays behind.

``python -m tests.soak`` (``make soak``) runs every scenario, each in a process of its own, and
fails where something grows.
"""
