"""Benchmarks: a file for a question, ours beside baselines in one run. Each prints a table and writes JSON."""
