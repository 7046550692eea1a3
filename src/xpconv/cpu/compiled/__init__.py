"""The optional fast engine: vector kernels that LLVM compiles for this processor, called without the interpreter."""
