"""Policy: (pattern, geometry, machine) -> plan. Choosing is pure; building packs structure in O(nnz)."""
