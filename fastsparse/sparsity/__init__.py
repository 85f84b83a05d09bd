"""Which weights may be nonzero: patterns, pruning, patterns that evolve. Sees parameters, never layers."""

from fastsparse.sparsity.algorithms import SET, GradualPruning, RigL
from fastsparse.sparsity.patterns import erdos_renyi, mask_pattern, nm_pattern, random_pattern
from fastsparse.sparsity.pruning import magnitude_prune, random_prune
from fastsparse.sparsity.schedules import ConstantSparsity, PolynomialDecay

__all__ = [
    # patterns
    "erdos_renyi",
    "mask_pattern",
    "nm_pattern",
    "random_pattern",
    # pruning
    "magnitude_prune",
    "random_prune",
    "GradualPruning",
    "ConstantSparsity",
    "PolynomialDecay",
    # evolving patterns
    "SET",
    "RigL",
]
