"""Devices measured: named layers, what xpconv takes for them beside its rivals, and how near that is to the limit."""
