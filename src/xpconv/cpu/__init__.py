"""What the NumPy engine runs, and how it chooses."""
