"""Benchmarks: each prints a table for people, and one JSON object as the last line of standard output."""
