"""What `gpu_check.sh` runs: one module for each part, each run in a process of its own."""
