"""fastsparse: sparse neural networks on CPUs, in Numba.

Importing this package compiles nothing, starts no thread and changes no global setting. Names of submodules that
cost time to import (layers, training, engine) are loaded when first touched.
"""

__version__ = "0.1.0"
