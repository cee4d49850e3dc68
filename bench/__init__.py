"""Benchmarks of fastdiff; the entry is run.py beside this file."""
