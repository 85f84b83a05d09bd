"""Host side of the operations, one per file: choose, plan, pack, launch, from top to bottom.

Arguments have been checked above (`fastsparse.functional`, `fastsparse.nn`); kernels are below (`fastsparse_kernels`).
"""
