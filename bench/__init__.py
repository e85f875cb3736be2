"""Measurements that print a table and keep it in bench/results; docs/benchmarks.md explains them."""
