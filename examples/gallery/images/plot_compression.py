"""
Image compression: a sparse autoencoder against wavelets
========================================================

An autoencoder squeezes a patch of 16 x 16 pixels through 16 numbers. Its weights are 90% sparse. Is that better than 16
cosines, or than wavelets? All codes are rounded to steps of equal size and charged the bits that an ideal entropy coder
takes, and wavelets and cosines pay for saying which coefficients they keep.

Method: G. Hinton, R. Salakhutdinov, *Reducing the dimensionality of data with neural networks*, 2006, here with sparse
layers; wavelet thresholding as in S. Mallat, *A wavelet tour of signal processing*. Data: photographs that ship with
scikit-image and scikit-learn; the network is trained on five and judged on another one, ``camera``.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from skimage import color, data
from sklearn.datasets import load_sample_images
from sklearn.decomposition import PCA
from sklearn.feature_extraction.image import extract_patches_2d

import fastsparse as fs
from fastsparse import nn, training
from fastsparse.representations import DCT, Wavelet

SMALL = os.environ.get("FASTSPARSE_EXAMPLES") == "small"
SEED = int(os.environ.get("FASTSPARSE_EXAMPLES_SEED", 0))
SIDE, CODE, EPOCHS, SAMPLES = 16, 16, 15 if SMALL else 30, 1000 if SMALL else 15000

photographs = [data.astronaut(), data.coffee(), data.chelsea(), *load_sample_images().images]
train = np.concatenate(
    [
        extract_patches_2d(color.rgb2gray(image), (SIDE, SIDE), max_patches=SAMPLES // 5, random_state=SEED)
        for image in photographs
    ]
).reshape(-1, SIDE * SIDE).astype("float32") - np.float32(0.5)

# %%
# The autoencoder
# ---------------
# 256-512-16-512-256, and what it stores of a patch is the sixteen numbers in the middle.

rng = np.random.default_rng(SEED)
encoder = nn.Sequential(
    nn.SparseLinear(SIDE * SIDE, 512, sparsity=0.9, activation="leaky_relu", rng=rng),
    nn.SparseLinear(512, CODE, sparsity=0.5, rng=rng),
)
decoder = nn.Sequential(
    nn.SparseLinear(CODE, 512, sparsity=0.5, activation="leaky_relu", rng=rng),
    nn.SparseLinear(512, SIDE * SIDE, sparsity=0.9, rng=rng),
)
model = nn.Sequential(*encoder, *decoder)
steps = EPOCHS * (len(train) // 50)
history = training.fit(
    model,
    (train, train),
    epochs=EPOCHS,
    batch_size=50,
    optimizer=training.Adam(model.parameters(), training.CosineDecay(2e-3, steps)),
    loss=training.mse,
    progress=False,
    rng=SEED,
)
print(f"{sum(history['seconds']):.1f} s of training, loss {history['loss'][-1]:.5f}")

# %%
# Bits
# ----
# Codes are rounded to multiples of a step. An ideal coder takes the entropy of the numbers (each place of the code
# apart for the autoencoder and PCA); for a sparse code it also has to say which numbers are not 0.

image = data.camera()[96:352, 96:352] if SMALL else data.camera()
image = image.astype("float32") / 255 - np.float32(0.5)
blocks = image.reshape(image.shape[0] // SIDE, SIDE, -1, SIDE).swapaxes(1, 2)
rows = blocks.reshape(-1, SIDE * SIDE)


def entropy(symbols):
    """Bits that an ideal coder takes for all the symbols, by their own frequencies."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def positions(nonzeros, size):
    """Bits to say which of `size` numbers are not 0."""
    share = nonzeros / size
    return -size * (share * np.log2(share) + (1 - share) * np.log2(1 - share))


def dense_code(codes, step):
    """Rounded codes and their bits."""
    symbols = np.rint(codes / step)
    return (symbols * step).astype("float32"), sum(entropy(column) for column in symbols.T)


def sparse_code(transform, step):
    """The image from rounded coefficients, those that round to 0 dropped, and the bits."""
    codes = transform.encode(image[None], threshold=step / 2).matrix
    codes.data = np.rint(codes.data / step) * step
    return transform.decode(codes)[0], entropy(codes.data) + positions(codes.nnz, image.size)


def picture(patches):
    """The image of patches (patches, pixels)."""
    return patches.reshape(blocks.shape).swapaxes(1, 2).reshape(image.shape)


encode, decode = (fs.compile(part, (len(rows), size)) for part, size in ((encoder, SIDE * SIDE), (decoder, CODE)))
pca = PCA(CODE).fit(train)
codes, projected = encode(rows), pca.transform(rows)
transforms = {"wavelets": Wavelet(image.shape, "bior4.4"), "cosine blocks": DCT(image.shape, block=8)}


def at_step(name, step):
    """The image and its bits, by one of the methods."""
    if name == "sparse autoencoder":
        rounded, bits = dense_code(codes, step * codes.std())
        return picture(decode(rounded)), bits
    if name == "PCA":
        rounded, bits = dense_code(projected, step)
        return picture(pca.inverse_transform(rounded)), bits
    return sparse_code(transforms[name], step)


steps = np.geomspace(0.03, 1.0, 8 if SMALL else 16)
curves = {}
for name in ("sparse autoencoder", "PCA", "wavelets", "cosine blocks"):
    found = [at_step(name, step) for step in steps]
    rate = [bits / image.size for _, bits in found]
    curves[name] = rate, [-10 * np.log10(np.mean((restored - image) ** 2)) for restored, _ in found]

figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
for name, (rate, quality) in curves.items():
    axis.plot(rate, quality, ".-", label=name)
axis.set(xlabel="bits per pixel", ylabel="PSNR (dB)", xlim=(0, 0.8), ylim=(20, 34))
axis.legend()

# %%
# At a quarter of a bit per pixel
# -------------------------------
# 32 times smaller than the file of bytes.


def at_rate(name, wanted=0.25):
    """Image, rate and PSNR at the step whose rate is nearest to the one wanted."""
    low, high = 1e-3, 4.0
    for _ in range(20):
        middle = np.sqrt(low * high)
        restored, bits = at_step(name, middle)
        low, high = (middle, high) if bits / image.size > wanted else (low, middle)
    return restored, bits / image.size, float(-10 * np.log10(np.mean((restored - image) ** 2)))


figure, axes = plt.subplots(1, 4, figsize=(13, 3.8), layout="constrained")
window = slice(0, 256), slice(0, 256)
axes[0].imshow(image[window], cmap="gray", vmin=-0.5, vmax=0.5)
axes[0].set_title("as it was")
quality = {}
for axis, name in zip(axes[1:], ("sparse autoencoder", "PCA", "wavelets")):
    restored, rate, quality[name] = at_rate(name)
    axis.imshow(restored[window], cmap="gray", vmin=-0.5, vmax=0.5)
    axis.set_title(f"{name}: {quality[name]:.1f} dB\n{rate:.2f} bits a pixel")
for axis in axes:
    axis.axis("off")

# %%
# The claim
# ---------
# Wavelets win. They put their coefficients where this picture needs them; the network has sixteen numbers for a patch
# of sky, too, and so has PCA, the best linear code of that kind, which is a little better than the network: with few
# photographs to learn from, there is not much more to know of patches than their covariance.

result = {
    "claim": "At 0.25 bits a pixel, wavelets restore an unseen photograph better than the sparse autoencoder",
    "measured": quality["wavelets"],
    "baseline": quality["sparse autoencoder"],
    "unit": "dB PSNR",
    "holds": quality["wavelets"] > quality["sparse autoencoder"],
}
print(result)
