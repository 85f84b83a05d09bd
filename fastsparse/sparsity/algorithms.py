"""Patterns that change while a model trains: gradual pruning, SET, RigL, CHT.

An algorithm's `step(step)` is called after each step of the optimizer, with the number of steps made, from 1. `fit`
does that, and tells the algorithm before by `begin` how many there are; a loop of your own calls it where the optimizer
has made steps without the algorithm. Optimizer state follows its nonzero; nonzeros that leave a pattern are forgotten,
and new ones start with value and state 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fastsparse import checks
from fastsparse.checks import Seed
from fastsparse.csr import Pattern
from fastsparse.sparsity._model import Array, Model, SparseParameter, chosen_parameters, pattern_of
from fastsparse.sparsity.growth import PathScores, offered
from fastsparse.sparsity.pruning import SCOPES, magnitude_prune, magnitudes_of
from fastsparse.sparsity.schedules import SparsitySchedule
from fastsparse.sparsity.selection import (
    Elements,
    TopK,
    checked_elements,
    elements_of,
    exchanged,
    free_elements,
    largest,
)


class GradualPruning:
    """Magnitude pruning along a schedule, with training in between.

    Zhu and Gupta, To prune, or not to prune (2017). Start from layers with ``sparsity=0.0``.

    Parameters
    ----------
    model : fs.nn.Module, or torch.nn.Module with layers of fastsparse.torch
    schedule : PolynomialDecay, ConstantSparsity
        Or anything with ``due(step) -> bool`` that gives a sparsity when called with a step.
    scope : {"layer", "global"}
    exclude : names of layers or parameters
        Both as for :func:`magnitude_prune`.

    Examples
    --------
    >>> import fastsparse as fs
    >>> from fastsparse.sparsity import GradualPruning, PolynomialDecay
    >>> model = fs.nn.Sequential(fs.nn.SparseLinear(100, 50, sparsity=0.0, rng=0))
    >>> pruning = GradualPruning(model, PolynomialDecay(0.0, 0.9, 0, 200, frequency=50))
    >>> for step in range(1, 201):
    ...     pruning.step(step)  # after optimizer.step()
    >>> model[0].pattern.nnz
    500
    """

    def __init__(
        self, model: Model, schedule: SparsitySchedule, *, scope: str = "layer", exclude: Iterable[str] = ()
    ) -> None:
        if not callable(schedule) or not callable(getattr(schedule, "due", None)):
            raise TypeError(f"schedule is a {type(schedule).__name__}, expected PolynomialDecay or ConstantSparsity")
        checks.choice(scope, "scope", SCOPES)
        self.exclude = checks.names(exclude, "exclude")
        chosen_parameters(model, self.exclude)
        self.model, self.schedule, self.scope = model, schedule, scope

    def step(self, step: int) -> None:
        """Prune when the schedule says so."""
        if self.schedule.due(checks.integer(step, "step", 0)):
            magnitude_prune(self.model, self.schedule(step), scope=self.scope, exclude=self.exclude)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the patterns."""
        return {"type": type(self).__name__}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        _check_type(self, state)


_PARAMETERS = """
    Parameters
    ----------
    model : fs.nn.Module, or torch.nn.Module with layers of fastsparse.torch
        Its sparse layers take part, but for those in `exclude`.
    drop_fraction : float in [0, 1]
        Share of a layer's nonzeros that is exchanged, at first.
    every : int
        Steps between changes.
    stop : float in [0, 1]
        Share of all steps after which patterns stay.
    steps : int, optional
        Steps of the whole training; ``fit`` tells it when it is not given. When nobody does, the drop fraction stays
        as it is and changes do not stop.
    exclude : names of layers or parameters"""


class Evolving:
    __doc__ = f"""Base of SET, RigL, CHT and algorithms of your own: layers exchange their weakest weights for new ones.

    A subclass defines `grow`, which says where new weights come, and may define `strengths`, which says how strong each
    of the old ones is (its magnitude, if not). The exchanged share falls along half a cosine from `drop_fraction` to 0
    (Evci et al., section 3), or as `fraction` says. The number of nonzeros of every layer is constant. New weights
    start at 0.
{_PARAMETERS}
    rng : None, int or Generator
        ``self.rng`` for the subclass.
    """

    # Whether layers keep what `parameter.grow_scores` needs, on the steps that end with a change.
    watches = False
    _trusted = False  # whether `grow` needs no check

    def __init__(
        self,
        model: Model,
        *,
        drop_fraction: float = 0.3,
        every: int = 100,
        stop: float = 1.0,
        steps: int | None = None,
        exclude: Iterable[str] = (),
        rng: Seed = None,
    ) -> None:
        self.drop_fraction = checks.number(drop_fraction, "drop_fraction", 0, 1)
        self.stop = checks.number(stop, "stop", 0, 1)
        self.every = checks.integer(every, "every")
        self.steps = None if steps is None else checks.integer(steps, "steps")
        self.model = model
        self.parameters: list[tuple[str, SparseParameter]] = chosen_parameters(model, exclude)
        self.rng = checks.generator(rng)
        self._given = self.steps
        self._last = 0
        self._watch(1)

    def begin(self, steps: int | None, made: int | None = None) -> None:
        """Learn about the steps of the optimizer, before a training; `fit` calls this.

        Parameters
        ----------
        steps : int or None
            Which will be the last; ``steps=`` goes before it.
        made : int, optional
            How many it has made: layers are prepared for the next one. Default: as many as `step` was told.
        """
        steps = None if steps is None else checks.integer(steps, "steps", 0)
        self.steps = self._given if self._given is not None else steps
        self._last = self._last if made is None else checks.integer(made, "made", 0)
        self._watch(self._last + 1)

    def fraction(self, step: int) -> float:
        """Share of the nonzeros that is exchanged after step number `step`."""
        if self.steps is None:
            return self.drop_fraction
        end = self.stop * self.steps
        return self.drop_fraction * (1 + math.cos(math.pi * step / end)) / 2 if step < end else 0.0

    def due(self, step: int) -> bool:
        """Whether patterns change after step number `step`."""
        return step > 0 and step % self.every == 0 and self.fraction(step) > 0

    def step(self, step: int) -> None:
        """Exchange weights when it is time.

        Raises
        ------
        ValueError
            When a value is NaN; nothing has been changed then. When `grow` gives what are no elements for new weights.
        """
        step = checks.integer(step, "step", 0)
        if self.due(step):
            fraction = self.fraction(step)
            strengths = [self.strengths(name, parameter) for name, parameter in self.parameters]
            for (name, parameter), strength in zip(self.parameters, strengths):
                self._exchange(name, parameter, strength, fraction, step)
        self._last = step
        self._watch(step + 1)

    def _exchange(
        self, name: str, parameter: SparseParameter, strengths: Array, fraction: float, step: int
    ) -> None:  # fmt: skip
        pattern = pattern_of(parameter)
        free = pattern.shape[0] * pattern.shape[1] - pattern.nnz
        count = min(int(fraction * pattern.nnz), free)
        if count == 0:
            return
        grown = self.grow(name, parameter, count)
        if not self._trusted:
            grown = checked_elements(grown, pattern, count, f"{type(self).__name__}.grow")
        # NaN gradients are left out, so there may be fewer than requested.
        kept = largest(strengths, pattern.nnz - len(grown))
        parameter.replace_pattern(*exchanged(pattern, kept, grown))

    def strengths(self, name: str, parameter: SparseParameter) -> Array:
        """How strong each weight is, (nnz,): the weakest are dropped. Here their magnitudes."""
        return magnitudes_of(name, parameter.value)

    def grow(self, name: str, parameter: SparseParameter, count: int) -> Elements:
        """Where new weights come.

        Parameters
        ----------
        name : str
            The parameter's, such as "0.values".
        parameter : SparseParameter
            With ``pattern``, ``value`` and ``grad``, both (nnz,), and where the class has ``watches = True``
            ``grow_scores(count)``: the elements outside the pattern with the largest gradients, and their magnitudes.
        count : int
            How many are wanted.

        Returns
        -------
        int64 array
            Numbers row * columns + column of elements outside the pattern, each once, at most `count`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define grow")

    def _watch(self, step: int) -> None:
        """Make layers keep data for growing if `step`, the next one, ends with a change of patterns."""
        if self.watches:
            due = self.due(step)
            for _, parameter in self.parameters:
                parameter.watch(due)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the patterns, in JSON types."""
        return {"type": type(self).__name__, "last": self._last, "rng": self.rng.bit_generator.state}

    def check_steps(self, state: Mapping[str, Any], steps: int) -> None:
        """Raise ValueError unless `state` has seen the optimizer's last step: layers are prepared for the next one."""
        if state["last"] != steps:
            raise ValueError(f"last is {state['last']!r}, expected {steps}, the steps of the optimizer")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        _check_type(self, state)
        last = state["last"]
        last = checks.integer(last, "last", 0)
        self.rng.bit_generator.state = state["rng"]
        self._last = last
        self._watch(self._last + 1)


class SET(Evolving):
    __doc__ = f"""Sparse evolutionary training: the smallest weights make room for random new ones.

    Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity, Nature
    Communications 9, 2383 (2018); here with a drop fraction that falls along a cosine.
{_PARAMETERS}
    rng : None, int or Generator

    Examples
    --------
    >>> import fastsparse as fs
    >>> model = fs.nn.Sequential(fs.nn.SparseLinear(100, 50, sparsity=0.9, rng=0))
    >>> before = model[0].pattern
    >>> fs.sparsity.SET(model, every=1, rng=0).step(1)  # after optimizer.step()
    >>> model[0].pattern == before, model[0].pattern.nnz
    (False, 500)
    """

    _trusted = True

    def grow(self, name: str, parameter: SparseParameter, count: int) -> Elements:
        return free_elements(pattern_of(parameter), count, self.rng)


class RigL(Evolving):
    __doc__ = f"""The smallest weights make room for those with the largest gradients.

    Evci, Gale, Menick, Castro, Elsen, Rigging the Lottery, ICML 2020. Gradients outside the patterns are computed in
    blocks on the steps that need them, from the input and the output's gradient that layers keep on these steps.
    Weights dropped in a change do not return in the same one.
{_PARAMETERS}
    """

    watches = _trusted = True

    def __init__(
        self,
        model: Model,
        *,
        drop_fraction: float = 0.3,
        every: int = 100,
        stop: float = 0.75,
        steps: int | None = None,
        exclude: Iterable[str] = (),
    ) -> None:
        super().__init__(
            model, drop_fraction=drop_fraction, every=every, stop=stop, steps=steps, exclude=exclude, rng=0
        )

    def grow(self, name: str, parameter: SparseParameter, count: int) -> Elements:
        try:
            return parameter.grow_scores(count)[0]
        except RuntimeError as error:
            raise RuntimeError(f"{name}: {error}") from None


class CHT(Evolving):
    """The smallest weights make room for links that the pattern itself predicts: no gradient is looked at.

    Cannistraci-Hebb training: what is left of a layer after the smallest weights were dropped is a bipartite graph, in
    which elements at the ends of paths of length 3 score by the CH3-L3 rule of link prediction, more when the nodes
    between them have few links elsewhere. The highest scores become nonzeros; a weight that was dropped and is
    predicted stays as it was. Where fewer elements than are wanted are at the ends of such paths, the rest is drawn at
    random.

    Zhang, Zhao, Wu, Muscoloni, Cannistraci, Epitopological learning and Cannistraci-Hebb network shape intelligence,
    ICLR 2024; the soft rule: Zhang et al., Brain network science modelling of sparse neural networks, arXiv 2501.19107.
    Here with a drop fraction that falls along a cosine, and without their initialisation by correlated inputs and
    their removal of neurons that lost all inputs or outputs.

    Parameters
    ----------
    model : fs.nn.Module, or torch.nn.Module with layers of fastsparse.torch
        Its sparse layers take part, but for those in `exclude`.
    drop_fraction : float in [0, 1]
        Share of a layer's nonzeros that is dropped, at first.
    every : int
        Steps between changes. The time of one grows with the number of paths: rows times the cube of the nonzeros in
        a row and column. At densities of a few percent it is that of a few training steps.
    stop : float in [0, 1]
        Share of all steps after which patterns stay.
    steps : int, optional
        Steps of the whole training; ``fit`` tells it when it is not given. When nobody does, the drop fraction stays
        as it is and changes do not stop.
    soft : bool
        Draw what stays with chances in proportion to |weight|^t, t rising from 1 to 3 in the course of the changes, and
        what is new in proportion to the scores, instead of taking the largest (CHTs).
    exclude : names of layers or parameters
    rng : None, int or Generator

    Examples
    --------
    >>> import fastsparse as fs
    >>> model = fs.nn.Sequential(fs.nn.SparseLinear(100, 50, sparsity=0.9, rng=0))
    >>> before = model[0].pattern
    >>> fs.sparsity.CHT(model, every=1, rng=0).step(1)  # after optimizer.step()
    >>> model[0].pattern == before, model[0].pattern.nnz
    (False, 500)
    """

    def __init__(
        self,
        model: Model,
        *,
        drop_fraction: float = 0.3,
        every: int = 100,
        stop: float = 1.0,
        steps: int | None = None,
        soft: bool = False,
        exclude: Iterable[str] = (),
        rng: Seed = None,
    ) -> None:
        super().__init__(
            model, drop_fraction=drop_fraction, every=every, stop=stop, steps=steps, exclude=exclude, rng=rng
        )
        self.soft = checks.flag(soft, "soft")

    def _exchange(
        self, name: str, parameter: SparseParameter, strengths: Array, fraction: float, step: int
    ) -> None:  # fmt: skip
        pattern = pattern_of(parameter)
        count = int(fraction * pattern.nnz)
        if count == 0:
            return
        kept = largest(self._softened(strengths, step), pattern.nnz - count)
        predicted = self._predicted(exchanged(pattern, kept, np.empty(0, np.int64))[0], count)
        elements = elements_of(pattern)
        kept |= np.isin(elements, predicted)
        parameter.replace_pattern(*exchanged(pattern, kept, np.setdiff1d(predicted, elements)))

    def _softened(self, magnitudes: Array, step: int) -> Array:
        """What decides which weights stay; with the soft rule, the largest of it are a sample without replacement."""
        if not self.soft:
            return magnitudes
        done = 0.0 if self.steps is None else step / (self.stop * self.steps)
        return np.asarray(magnitudes ** (1 + 2 * done) / self.rng.standard_exponential(len(magnitudes)))

    def _predicted(self, pattern: Pattern, count: int) -> Elements:
        scores = PathScores(pattern, self.rng if self.soft else None)
        elements = offered(TopK(pattern, count, above=0.0), pattern, [scores]).result()[0]
        if len(elements) < count:
            both = exchanged(pattern, np.ones(pattern.nnz, np.bool_), elements)[0]
            elements = np.union1d(elements, free_elements(both, count - len(elements), self.rng))
        return elements


def _check_type(algorithm: Any, state: Any) -> None:
    found = state.get("type") if isinstance(state, dict) else None
    if found != type(algorithm).__name__:
        raise ValueError(f"state is of the sparsity algorithm {found}, expected {type(algorithm).__name__}")
