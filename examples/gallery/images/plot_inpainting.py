"""
Inpainting: three pixels of four are missing
============================================

What is missing is whatever makes the picture sparse. Overlapping patches of the current estimate are transformed by
cosines, small coefficients are dropped, the patches are averaged, and the known pixels are put back; with every
iteration the threshold falls, from the outline to the detail.

Method: J.-L. Starck, M. Elad, D. Donoho, *Redundant multiscale transforms and their application for morphological
component separation*, 2004, and O. Guleryuz, *Nonlinear approximation based image recovery using adaptive sparse
reconstructions and iterated denoising*, 2006. Baseline: biharmonic interpolation,
``skimage.restoration.inpaint_biharmonic``. Data: photographs that ship with scikit-image; the known pixels are drawn at
random.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from skimage import color, data
from skimage.restoration import inpaint_biharmonic
from sklearn.feature_extraction.image import extract_patches_2d, reconstruct_from_patches_2d

from fastsparse.representations import DCT

SMALL = os.environ.get("FASTSPARSE_EXAMPLES") == "small"
SEED = int(os.environ.get("FASTSPARSE_EXAMPLES_SEED", 0))
SIDE, SIZE, ITERATIONS = 8, 64 if SMALL else 192, 30 if SMALL else 60

photographs = {
    "brick": data.brick() / 255,
    "camera": data.camera() / 255,
    "astronaut": color.rgb2gray(data.astronaut()),
}
corner = {"brick": (100, 100), "camera": (60, 150), "astronaut": (0, 130)}
clean = {
    name: image[corner[name][0] :, corner[name][1] :][:SIZE, :SIZE].astype("float32")
    for name, image in photographs.items()
}

# %%
# The iteration
# -------------
# ``encode`` takes all patches at once and gives one sparse matrix; ``decode`` goes back to pixels.

cosines = DCT((SIDE, SIDE))


def inpainted(image, known):
    """The image restored from its known pixels, and the nonzeros of a patch in each iteration."""
    estimate, nonzeros = np.where(known, image, image[known].mean()), []
    for threshold in np.geomspace(1, 0.01, ITERATIONS):
        patches = extract_patches_2d(estimate, (SIDE, SIDE))
        codes = cosines.encode(patches, threshold=threshold)
        nonzeros.append(codes.matrix.nnz / len(patches))
        smooth = reconstruct_from_patches_2d(cosines.decode(codes), image.shape)
        estimate = np.where(known, image, smooth).astype("float32")
    return estimate, nonzeros


def psnr(image, wanted):
    """Peak signal-to-noise ratio in decibels, for a peak of 1."""
    return float(-10 * np.log10(np.mean((np.clip(image, 0, 1) - wanted) ** 2)))


# %%
# Three photographs
# -----------------
# Where the picture is smooth, interpolation does as well. Where it has structure, sparsity finds it.

figure, axes = plt.subplots(3, 4, figsize=(11, 8.6), layout="constrained")
quality = {}
for row, (name, image) in zip(axes, clean.items()):
    known = np.random.default_rng(SEED).random(image.shape) < 0.25
    given = np.where(known, image, 0)
    sparse, nonzeros = inpainted(image, known)
    smooth = inpaint_biharmonic(given, ~known)
    quality[name] = psnr(sparse, image), psnr(smooth, image)
    titles = [
        name,
        "a quarter is known",
        *(f"{how}: {value:.1f} dB" for how, value in zip(("sparse", "biharmonic"), quality[name])),
    ]
    for axis, shown, title in zip(row, (image, given, sparse, smooth), titles):
        axis.imshow(shown, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title)
        axis.axis("off")
    print(
        f"{name}: {quality[name][0]:.2f} dB, biharmonic {quality[name][1]:.2f} dB, {nonzeros[-1]:.1f} nonzeros a patch"
    )

# %%
# The claim
# ---------

measured, baseline = np.mean(list(quality.values()), axis=0).tolist()
result = {
    "claim": "From a quarter of the pixels, sparsity restores three photographs better, on average, than interpolation",
    "measured": measured,
    "baseline": baseline,
    "unit": "dB PSNR",
    "holds": measured > baseline,
}
print(result)
