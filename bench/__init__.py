"""Benchmarks: workloads as data, providers as setup -> callable, measured by pytest-benchmark in interleaved rounds."""
