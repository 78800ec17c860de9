"""Benchmarks: one file per question, each side by side with a peer in one run. Each prints a table and writes JSON."""
