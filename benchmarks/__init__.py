"""Benchmarks, side by side with the tools that people use instead. See RESULTS.md."""
