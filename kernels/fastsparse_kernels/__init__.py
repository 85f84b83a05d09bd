"""The Numba kernels of fastsparse: trusted inputs, preallocated outputs, no validation.

Nothing here imports ``fastsparse``. ``fastsparse/launch.py`` is the one caller of compute kernels.
"""
