"""xpconv on NumPy arrays beside its peers on the CPU."""
