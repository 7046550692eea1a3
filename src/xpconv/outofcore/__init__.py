"""Filters from file to file, chunk by chunk: arrays larger than memory, and work that goes on after an interruption."""
