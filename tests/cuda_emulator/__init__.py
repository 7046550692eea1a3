"""Runs the text of the CUDA kernels on the CPU, one fibre per CUDA thread, and checks what each thread touches.

`README.md` beside this file says what is checked, what cannot be seen from here, and how to add an instruction.
"""
