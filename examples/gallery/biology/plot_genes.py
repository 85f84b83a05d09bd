"""
Genes that tell blood cells apart
=================================

A network whose first layer is pruned chooses its inputs. Are its genes those that a linear model would choose? Here
765 genes of 700 blood cells of ten types go through a layer in which one weight in fifty is left, and the genes are
ranked by the weights that they keep. The linear model is a support vector machine with an L1 penalty: most genes get
no weight.

The data come with scanpy, as a sparse matrix (G. Zheng et al., Massively parallel digital transcriptional profiling of
single cells, Nature Communications 8, 14049, 2017); the file is read with h5py.
"""

import importlib.util
import os
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np
from scipy import sparse
from scipy.stats import hypergeom
from sklearn.model_selection import train_test_split
from sklearn.svm import LinearSVC

from fastsparse import nn, sparsity, training

SMALL = os.environ.get("FASTSPARSE_EXAMPLES") == "small"
SEED = int(os.environ.get("FASTSPARSE_EXAMPLES_SEED", 0))
EPOCHS, BATCH, TOP = 25 if SMALL else 60, 32, 50

package = importlib.util.find_spec("scanpy")
if package is None or package.origin is None:
    raise ModuleNotFoundError("the data come with scanpy, which is not installed", name="scanpy")
with h5py.File(Path(package.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad") as file:
    raw = file["raw.X"]
    shape = tuple(raw.attrs["h5sparse_shape"])
    x = sparse.csr_array((raw["data"][:], raw["indices"][:], raw["indptr"][:]), shape=shape, dtype=np.float32)
    y = file["obs"]["bulk_labels"].astype(np.int64)
    types = [name.decode() for name in file["uns/bulk_labels_categories"]]
    genes = [name.decode() for name in file["raw.var"]["index"]]
print(f"{x.shape[0]} cells, {x.shape[1]} genes, {x.nnz / np.prod(x.shape):.0%} of the counts are not zero")
train, test = train_test_split(np.arange(len(y)), test_size=0.3, stratify=y, random_state=0)

# %%
# The first layer starts with all weights and loses the smallest, until one in fifty is left. The sparse matrix of cells
# goes in as it is.


def trained(share):
    rng = np.random.default_rng(SEED)
    model = nn.Sequential(
        nn.SparseLinear(len(genes), 128, sparsity=0.0, activation="relu", rng=rng), nn.Linear(128, len(types), rng=rng)
    )
    steps = EPOCHS * -(-len(train) // BATCH)
    schedule = sparsity.PolynomialDecay(0.0, share, steps // 10, steps // 2, frequency=20)
    training.fit(
        model,
        (x[train], y[train]),
        epochs=EPOCHS,
        batch_size=BATCH,
        optimizer=training.AdamW(model.parameters(), training.CosineDecay(2e-3, steps), weight_decay=0.3),
        sparsity=sparsity.GradualPruning(model, schedule) if share else None,
        progress=False,
        rng=SEED,
    )
    return model, float(np.mean(model(x[test]).argmax(axis=1) == y[test]))


model, accuracy = trained(0.98)
_, dense_accuracy = trained(0.0)
lasso = LinearSVC(penalty="l1", dual=False, C=0.1, max_iter=10000, random_state=0).fit(x[train], y[train])
print(f"pruned {accuracy:.1%}, dense {dense_accuracy:.1%}, linear with L1 {lasso.score(x[test], y[test]):.1%}")

# %%
# A gene's weight in the network is that of the paths through it; in the linear model, that of its coefficients. Both
# are times the deviation of its counts.

deviation = np.sqrt((x[train] ** 2).mean(axis=0) - x[train].mean(axis=0) ** 2)
paths = abs(model[1].weight.value).sum(axis=0) @ abs(model[0].weight.toarray())
ours, linear = deviation * paths, deviation * abs(lasso.coef_).sum(axis=0)
top_ours, top_linear = (set(np.argsort(-score)[:TOP]) for score in (ours, linear))
common = len(top_ours & top_linear)
chance = TOP * TOP / len(genes)
print(
    f"{np.mean(ours > 0):.0%} of the genes keep a weight; {common} of the first {TOP} in common, {chance:.1f} by chance"
)
print(f"probability of as many by chance: {hypergeom.sf(common - 1, len(genes), TOP, TOP):.0e}")

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
left.scatter(linear, ours, s=8, color="tab:grey")
for gene in sorted(top_ours & top_linear, key=lambda g: -ours[g])[:12]:
    left.annotate(genes[gene], (linear[gene], ours[gene]), fontsize=8)
left.set(xlabel="weight in the linear model (L1)", ylabel="weight in the pruned network", title="The same genes?")
best = sorted(top_ours, key=lambda g: -ours[g])[:20]
means = np.array([x[y == label][:, best].mean(axis=0) for label in range(len(types))])
right.imshow(means / means.max(axis=0), cmap="viridis", aspect="auto")
right.set_xticks(range(len(best)), [genes[g] for g in best], rotation=90, fontsize=8)
right.set_yticks(range(len(types)), types, fontsize=8)
right.set_title("Mean expression of the network's first 20 genes")
plt.show()

# %%
result = {
    "claim": "of the 50 genes that weigh most in the pruned network, far more than by chance are the linear model's",
    "measured": float(common),
    "baseline": float(chance),
    "unit": "genes in common",
    "holds": bool(common > 3 * chance),
}
print(result)
