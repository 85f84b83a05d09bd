"""fastsparse: sparse neural networks on CPUs, in Numba.

Importing this package compiles nothing, starts no thread and changes no global setting. Names of submodules that
cost time to import (layers, training, engine) are loaded when first touched.
"""

from fastsparse.csr import CSR, Pattern, csr

__version__ = "0.1.0"
__all__ = ["CSR", "Pattern", "csr"]
