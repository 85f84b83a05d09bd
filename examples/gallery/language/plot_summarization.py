"""
Summaries by a graph of sentences
=================================

A sentence that is like many other sentences of a text says what the text is about. LexRank (Erkan, Radev, JAIR 22,
2004) makes a graph of that: sentences are nodes, their similarity is the weight of an edge, and the stationary
distribution of a random walk tells which sentences matter. The walk is a power iteration, so all it takes is a sparse
matrix times a vector, again and again: `fs.matmul`.

Here one matrix holds the graphs of many texts at once, one block each: docstrings of Python's own standard library,
which were written by people who also summarized them, in a first line. That line is put aside, and the sentence that
the walk likes best is compared with it.
"""

import ast
import inspect
import os
import re
import sysconfig
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

import fastsparse as fs

SMALL = os.environ.get("FASTSPARSE_EXAMPLES") == "small"
SEED = int(os.environ.get("FASTSPARSE_EXAMPLES_SEED", 0))
FEWEST, MOST = 6, 60  # sentences of a text

# %%
# The texts: docstrings with a first line and at least six sentences behind it, read from the sources without running
# them. Examples and tables are no sentences.


def sentences(text):
    prose = (
        " ".join(part.split()) for part in re.split(r"\n\s*\n", text) if not re.search(r">>>|::|^ {4}|[|=]{2}", part)
    )
    found = [s.strip() for part in prose for s in re.split(r"(?<=[.!?]) +(?=[A-Z])", part)]
    return [s for s in found if len(s.split()) > 4 and s[-1] in ".!?"]


def docstrings(path):
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            first, _, rest = inspect.cleandoc(text).partition("\n\n")
            body = sentences(rest)
            if "\n" not in first and len(first.split()) > 3 and FEWEST <= len(body) <= MOST:
                yield path.stem, first, body


library = Path(sysconfig.get_path("stdlib"))
folders = [
    "asyncio",
    "email",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "unittest",
    "xml",
    "concurrent",
    "http",
]
paths = sorted(library.glob("*.py")) + sorted(p for name in folders for p in (library / name).rglob("*.py"))
texts = [found for path in (paths[:60] if SMALL else paths) for found in docstrings(path)]
body = [sentence for _, _, part in texts for sentence in part]
owner = np.repeat(np.arange(len(texts)), [len(part) for _, _, part in texts])
print(f"{len(texts)} texts of {len(body)} sentences")

# %%
# The graph. Rows of TF-IDF weights have length 1, so their products are cosines; similarities within a text stay,
# others go. As in the paper, a walker follows an edge, or with a probability of 0.15 jumps to any sentence of its text.

words = TfidfVectorizer(stop_words="english", sublinear_tf=True, dtype=np.float32)
vectors = words.fit_transform(body)
similarity = sparse.coo_array(vectors @ vectors.T)
inside = owner[similarity.row] == owner[similarity.col]
similarity = sparse.csr_array(
    (similarity.data[inside], (similarity.row[inside], similarity.col[inside])), similarity.shape
)
# A sentence of stop words alone is like nothing, but for itself.
similarity = similarity + sparse.diags_array((similarity.diagonal() == 0).astype(np.float32))
walk = fs.csr(sparse.csr_array((similarity / similarity.sum(axis=1)[:, None]).T))
print(walk)

size = np.bincount(owner)[owner].astype(np.float32)
rank, changes = 1 / size, []
for _ in range(100):
    moved = 0.85 * fs.matmul(walk, rank) + 0.15 / size
    changes.append(float(abs(moved - rank).max()))
    rank = moved
    if changes[-1] < 1e-6:
        break
print(f"converged after {len(changes)} products")

# %%
# How good is the best sentence? ROUGE-1 (Lin, 2004): words in common with the summary that its author wrote, as
# harmonic mean of precision and recall; beside it the first sentence of the text, which is hard to beat in news, and
# the mean over all sentences, which is what a random choice gets.

tokens = words.build_analyzer()


def rouge(sentence, summary):
    a, b = set(tokens(sentence)), set(tokens(summary))
    return 2 * len(a & b) / max(1, len(a) + len(b))


scores = np.array([rouge(sentence, texts[text][1]) for sentence, text in zip(body, owner)])
starts = np.flatnonzero(np.diff(owner, prepend=-1))
best = np.array([start + rank[owner == text].argmax() for text, start in enumerate(starts)])
ranked, first = scores[best].mean(), scores[starts].mean()
chance = (np.add.reduceat(scores, starts) / np.bincount(owner)).mean()
print(f"LexRank {ranked:.3f}, first sentence {first:.3f}, any sentence {chance:.3f}")

# %%
# One text: its graph, and where the walk ends. The bars are the ranks, the darkest sentence is the summary.

example = int(np.argmax(np.where(np.bincount(owner) <= 16, scores[best], 0)))
part = slice(starts[example], starts[example] + np.bincount(owner)[example])
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 4.2), width_ratios=(1, 1.7, 0.8), layout="constrained")
left.imshow(similarity[part, part].toarray(), cmap="Greens")
left.set(title=f"similarity of sentences ({texts[example][0]})", xlabel="sentence", ylabel="sentence")
ranks = rank[part]
middle.barh(np.arange(len(ranks)), ranks, color=plt.cm.Greens(0.25 + 0.6 * ranks / ranks.max()))
for place, sentence in enumerate(body[part]):
    middle.text(0, place, " " + (sentence if len(sentence) < 68 else sentence[:65] + "..."), va="center", fontsize=7)
middle.set(title=f"“{texts[example][1]}”", xlabel="rank")
middle.invert_yaxis()
names = ["any sentence", "first", "LexRank"]
right.bar(names, [chance, first, ranked], color=["0.8", "0.6", "tab:green"])
right.set(title=f"ROUGE-1 over {len(texts)} texts")
plt.show()
print("summary:", texts[example][1], "\nchosen: ", body[best[example]])

# %%
# The last cell states what was claimed and what was measured.

result = {
    "claim": "the sentence of highest rank shares more words with the author's summary than a sentence at random",
    "measured": float(ranked),
    "baseline": float(chance),
    "unit": "ROUGE-1",
    "holds": bool(ranked > chance),
}
print(result)
