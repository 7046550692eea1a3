"""What the CuPy engine needs to run `kernels/`: plans, which are pure, and the launching of what they say."""
