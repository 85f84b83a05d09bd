"""Which weights may be nonzero: patterns and pruning. Sees parameters, never layers."""

from fastsparse.sparsity.patterns import erdos_renyi, random_pattern
from fastsparse.sparsity.pruning import magnitude_prune

__all__ = ["erdos_renyi", "magnitude_prune", "random_pattern"]
