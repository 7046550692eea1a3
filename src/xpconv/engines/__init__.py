"""One module per array library, with one function per operation; `xpconv.dispatch` loads the one an array needs."""
