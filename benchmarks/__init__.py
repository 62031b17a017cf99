"""Speed and memory, measured beside the libraries people use instead. ``python -m benchmarks --help``."""
