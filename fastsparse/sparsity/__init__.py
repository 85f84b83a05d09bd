"""Patterns, pruning, and patterns that change in training. Works on parameters, never on layers."""

from fastsparse.sparsity.algorithms import CHT, SET, Evolving, GradualPruning, RigL
from fastsparse.sparsity.patterns import erdos_renyi, mask_pattern, nm_pattern, random_pattern
from fastsparse.sparsity.pruning import magnitude_prune, random_prune, snip_prune
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
    "snip_prune",
    "GradualPruning",
    "ConstantSparsity",
    "PolynomialDecay",
    # evolving patterns
    "Evolving",
    "SET",
    "RigL",
    "CHT",
]
