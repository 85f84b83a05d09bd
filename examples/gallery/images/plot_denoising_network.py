"""
Denoising by a sparse convolutional network
===========================================

A small network learns what noise looks like, and subtracts it. Three of its kind are trained: a wide sparse one with
90% of the weights of its inner layers left out, whose pattern RigL evolves, its dense twin, and a narrow dense one with
about as many weights as the sparse one. They are compared with wavelet thresholding.

Method: K. Zhang et al., *Beyond a Gaussian denoiser* (DnCNN), 2017, without batch normalisation and with four layers
for seventeen; BayesShrink wavelets as in ``skimage.restoration.denoise_wavelet``. Data: photographs that ship with
scikit-image and scikit-learn, with Gaussian noise of our own (standard deviation 25 of 255); ``camera`` is not trained
on.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from skimage import color, data
from skimage.restoration import denoise_wavelet
from sklearn.datasets import load_sample_images
from sklearn.feature_extraction.image import extract_patches_2d

import fastsparse as fs
from fastsparse import nn, training

SMALL = os.environ.get("FASTSPARSE_EXAMPLES") == "small"
SEED = int(os.environ.get("FASTSPARSE_EXAMPLES_SEED", 0))
NOISE, SIDE = 25 / 255, 24
EPOCHS, PATCHES = (2, 450) if SMALL else (10, 1000)
rng = np.random.default_rng(SEED)

photographs = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), *load_sample_images().images]
patches = np.concatenate(
    [
        extract_patches_2d(color.rgb2gray(image), (SIDE, SIDE), max_patches=PATCHES // 5, random_state=SEED)
        for image in photographs
    ]
).astype("float32")[:, None]
print(patches.shape)

# %%
# Three networks
# --------------
# ``Residual`` adds the input to what its body computes, so the body has to learn the noise alone.


def network(width, sparsity):
    """Four convolutions of 3 x 3; the inner ones are dense for a sparsity of None."""
    body = [nn.Conv2d(1, width, 3, padding=1, activation="relu", rng=rng)]
    for _ in range(2):
        if sparsity is None:
            body.append(nn.Conv2d(width, width, 3, padding=1, activation="relu", rng=rng))
        else:
            body.append(nn.SparseConv2d(width, width, 3, padding=1, sparsity=sparsity, activation="relu", rng=rng))
    last = nn.Conv2d(width, 1, 3, padding=1, rng=rng)
    last.weight.value[:] *= 0.1  # begins near the identity
    return nn.Sequential(nn.Residual(nn.Sequential(*body, last)))


networks = {"sparse": network(24, 0.9), "narrow dense": network(8, None)}
if not SMALL:
    networks["dense twin"] = network(24, None)


class Noisy:
    """Batches of patches with new noise in every epoch; half of them are turned over."""

    def __len__(self):
        return len(patches) // 20

    def __iter__(self):
        noise = np.random.default_rng(rng.integers(2**32))
        for chosen in noise.permutation(len(patches) // 20 * 20).reshape(-1, 20):
            clean = patches[chosen, :, :: noise.choice([1, -1]), :: noise.choice([1, -1])]
            yield clean + NOISE * noise.standard_normal(clean.shape, np.float32), clean


losses, weights = {}, {}
for name, model in networks.items():
    steps = EPOCHS * len(Noisy())
    history = training.fit(
        model,
        Noisy(),
        epochs=EPOCHS,
        batch_size=20,
        optimizer=training.Adam(model.parameters(), training.CosineDecay(8e-3, steps)),
        loss=training.mse,
        sparsity=fs.sparsity.RigL(model, every=30) if name == "sparse" else None,
        progress=False,
    )
    losses[name], weights[name] = history["loss"], sum(p.value.size for p in model.parameters())
    print(f"{name}: {weights[name]} weights, {sum(history['seconds']):.1f} s of training")

# %%
# A photograph that none has seen
# -------------------------------
# ``fs.compile`` plans the trained network for images of this size.

clean = data.camera().astype("float32") / 255
clean = clean[96:288, 96:288] if SMALL else clean
noisy = clean + NOISE * np.random.default_rng(1).standard_normal(clean.shape, np.float32)


def psnr(image):
    """Peak signal-to-noise ratio against the clean image, in decibels."""
    return float(-10 * np.log10(np.mean((np.clip(image, 0, 1) - clean) ** 2)))


restored = {
    name: fs.compile(model, noisy[None, None].shape)(noisy[None, None])[0, 0] for name, model in networks.items()
}
restored["wavelets"] = denoise_wavelet(noisy, sigma=NOISE, wavelet="sym4", method="BayesShrink", mode="soft")
quality = {name: psnr(image) for name, image in {"noisy": noisy, **restored}.items()}
print({name: f"{value:.2f} dB" for name, value in quality.items()})

figure, axes = plt.subplots(2, 3, figsize=(11, 7.4), layout="constrained")
window = (slice(40, 190), slice(40, 190)) if SMALL else (slice(70, 290), slice(120, 340))
for axis, (name, image) in zip(axes.flat, {"clean": clean, "noisy": noisy, **restored}.items()):
    axis.imshow(image[window], cmap="gray", vmin=0, vmax=1)
    axis.set_title(name if name == "clean" else f"{name}: {quality[name]:.1f} dB")
    axis.axis("off")

# %%

figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, curve in losses.items():
    axis.semilogy(range(1, EPOCHS + 1), curve, label=f"{name}, {weights[name]:,} weights")
axis.set(xlabel="epoch", ylabel="mean squared error in training")
axis.legend()

# %%
# The claim
# ---------

result = {
    "claim": "A convolutional network with 90% of its inner weights left out denoises better than wavelet thresholding",
    "measured": quality["sparse"],
    "baseline": quality["wavelets"],
    "unit": "dB PSNR",
    "holds": quality["sparse"] > quality["wavelets"],
}
print(result)
