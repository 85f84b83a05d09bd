"""Sparse representations: data as few coefficients, one row of a scipy.sparse matrix for each sample.

``encode`` of a transform or a dictionary turns dense samples into a matrix that `fastsparse.linear`, ``training.fit``
and the estimators take as it is, and tells the squared error of what it left out; ``decode`` goes back.
"""

from fastsparse.representations.codes import Codes
from fastsparse.representations.dictionary import Dictionary
from fastsparse.representations.transforms import DCT, Fourier, Wavelet

__all__ = ["Codes", "DCT", "Dictionary", "Fourier", "Wavelet"]
