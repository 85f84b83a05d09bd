"""Benchmarks: workloads as data, baselines as setup -> callable, interleaved rounds, one report."""
