"""The conformance suite, run on recordings, on scripted engines and on real ones."""
