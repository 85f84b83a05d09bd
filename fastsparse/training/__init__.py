"""Training: losses, optimizers, learning rates, the loop."""

from fastsparse.training.callbacks import EarlyStopping
from fastsparse.training.fit import Progress, fit
from fastsparse.training.history import History
from fastsparse.training.losses import binary_cross_entropy, cross_entropy, mse
from fastsparse.training.optimizers import SGD, Adam, AdamW, Optimizer, clip_gradients
from fastsparse.training.schedules import CosineDecay, StepDecay, WarmUp

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CosineDecay",
    "EarlyStopping",
    "History",
    "Optimizer",
    "Progress",
    "StepDecay",
    "WarmUp",
    "binary_cross_entropy",
    "clip_gradients",
    "cross_entropy",
    "fit",
    "mse",
]
