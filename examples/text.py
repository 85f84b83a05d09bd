"""What a piece of documentation is about: docstrings of installed packages, from word counts, by sparse layers.

The corpus is read from the source files of the packages in `examples.corpus`. It changes with their versions, and is
the same at every call otherwise. Docstrings of one file stay together in one part of the data, and the names of the
topics are taken out of the texts.
"""

from __future__ import annotations

import sys

import numpy as np
from scipy import sparse

from examples.command import piped, run
from examples.corpus import TOPICS, read
from examples.experiment import Labels, Part, Settings, Split, Task, perceptron
from fastsparse import nn

# Places for words and pairs of words; which place is theirs, a hash says.
WORDS = 2**14


def load() -> Split:
    """Rows of word counts, weighted by rarity (tf-idf) and scaled to length 1, as scipy.sparse matrices."""
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.model_selection import GroupShuffleSplit

    documents = read()
    groups = [document.file for document in documents]
    rest, test = next(GroupShuffleSplit(1, test_size=0.25, random_state=0).split(documents, groups=groups))
    inner, chosen = next(
        GroupShuffleSplit(1, test_size=0.13, random_state=0).split(rest, groups=[groups[i] for i in rest])
    )
    named = {word for topic in TOPICS for word in topic.lower().split(".")}
    counter = HashingVectorizer(
        n_features=WORDS, token_pattern=r"[A-Za-z]{2,}", ngram_range=(1, 2), stop_words=sorted(named | {"np", "plt"}),
        alternate_sign=False, norm=None, dtype=np.float32,
    )  # fmt: skip
    rarity = TfidfTransformer(sublinear_tf=True)
    counts = counter.transform(document.text for document in documents)
    y: Labels = np.array([TOPICS.index(document.topic) for document in documents])
    rarity.fit(counts[rest[inner]])

    def part(chosen: Labels) -> Part:
        return sparse.csr_array(rarity.transform(counts[chosen]), dtype=np.float32), y[chosen]

    return Split(part(rest[inner]), part(rest[chosen]), part(test), TOPICS)


def network(sparsity: float | None, rng: np.random.Generator) -> nn.Sequential:
    """words-128-topics; all dense for sparsity None."""
    return perceptron((WORDS, 128, len(TOPICS)), sparsity, rng)


TASK = Task(
    "text",
    "topics of docstrings, sparse input",
    load,
    network,
    Settings(epochs=20, rate=5e-3, optimizer="adamw", weight_decay=0.1),
)

if __name__ == "__main__":
    sys.exit(piped(lambda: run(TASK, __doc__)))
