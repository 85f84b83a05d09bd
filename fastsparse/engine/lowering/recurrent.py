"""Recurrent layers: W x of all times at once, then time by time R h and the cell.

One sequence is vectors: SpMV with the sums of W x as its bias. Several are panels of samples, as in linear layers, with
these sums as the residual of an SpMM. The steps of all times stand in the schedule one behind the other, so that
nothing happens in Python between them.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from fastsparse.csr import CSR
from fastsparse.engine import split
from fastsparse.engine.lowering.weights import planned, prepared
from fastsparse.engine.program import Direction, Linear, Program, Recurrent
from fastsparse.engine.schedule import Buffer, Patch, Schedule, Step, View, Zeros
from fastsparse.ops import layouts, recurrent, spmm, spmv
from fastsparse.ops.target import Target, narrowed
from fastsparse.runtime.launch import Launch

Array = NDArray[Any]


def schedule(program: Program, batch: int, target: Target, sizes: split.Split | None = None) -> Schedule:
    """The schedule of a program of one recurrent layer, whose only sample has the shapes that ONNX gives the layer."""
    samples = program.shapes[program.inputs[0]][1]
    return (_Vectors if samples == 1 else _Panels)(program, narrowed(target, samples) if samples > 1 else target).made()


class _Lowering:
    """What both forms have in common. States and sums are of one time and all samples."""

    sums_bytes: int
    state_bytes: int

    def __init__(self, program: Program, target: Target) -> None:
        (self.node,), self.target = program.nodes, target
        assert isinstance(self.node.operator, Recurrent)
        self.operator = self.node.operator
        self.times, self.samples, self.features = program.shapes[program.inputs[0]]
        self.hidden = self.operator.directions[0].R.shape[1]
        self.rows = self.operator.directions[0].R.shape[0]
        names = ("x", *self.operator.states, *self.operator.results)
        self.users = {name: -1 - i for i, name in enumerate(names)}  # buffers
        self.steps: list[Step] = []
        self.buffers: list[tuple[int, Zeros | None]] = []

    def made(self) -> Schedule:
        """The schedule."""
        self.pack_input()
        for number, direction in enumerate(self.operator.directions):
            self._add_direction(number, direction)
        buffers = [Buffer(size, 0, len(self.steps), zeros) for size, zeros in self.buffers]
        return Schedule(self.steps, buffers, 1, self.target.threads, False, self.target.heuristics)

    def _add_direction(self, number: int, weights: Direction) -> None:
        kind, gru = self.operator.kind, self.operator.kind == "gru"
        sums, gates = self.buffer(self.times * self.sums_bytes), (self.buffer(self.sums_bytes), 0)
        self.add_input_product(weights.W, weights.bias, sums)
        product, cell = self.recurrent_product(weights.R, weights.recurrent_bias if gru else None, not gru), self.cell()
        h, c = self.first_state("h", number), self.first_state("c", number) if kind == "lstm" else (0, 0)
        slots, state = self.buffer(2 * self.state_bytes), (self.buffer(self.state_bytes), 0)
        for i in range(self.times):
            t, last = self.times - 1 - i if weights.reverse else i, i == self.times - 1
            x = sums, t * self.sums_bytes
            self.step("recurrent product", product, ("y", gates), x=h, **({} if gru else {self.term: x}))
            sources: dict[str, View] = {"x": x, "u": gates, "before": h} if gru else {"x": gates}
            if kind == "lstm":
                sources |= {"before": c, "after": state}
            h, c, sources = self.targets(t, number, last, (slots, i % 2 * self.state_bytes), sources)
            self.step(f"{kind} cell", cell, ("h", h), **sources)
            self.add_unpacking(t, number, last, h, c)

    def buffer(self, size: int, zeros: Zeros | None = None) -> int:
        """A new one."""
        self.buffers.append((max(1, size), zeros))
        return len(self.buffers) - 1

    def zeros(self) -> View:
        """A state of zeros."""
        size = max(1, self.state_bytes)
        return self.buffer(size, Zeros(size, 0, (), (), 0, 0)), 0

    def user(self, name: str, offset: int) -> View:
        """A view in one of the user's arrays."""
        return self.users[name], offset

    def step(self, kernel: str, launch: Launch, target: tuple[str, View], **sources: View) -> None:
        """Add a step whose operands have these views."""
        named = [*sources.items(), target]
        patches = tuple(Patch(field, -buffer, offset, 0) for field, (buffer, offset) in named if buffer < 0)
        views = [(buffer, 0 if buffer < 0 else offset) for _, (buffer, offset) in named]
        fields = tuple(field for field, _ in named)
        self.steps.append(
            Step(self.node.name, kernel, self.node, tuple(views[:-1]), views[-1], launch, fields, patches)
        )

    # --- what each form does in its own way ------------------------------------------------------

    term: str  # operand of the recurrent product that is W x

    def pack_input(self) -> None:
        """Bring x into the form that products read."""

    def add_input_product(self, W: CSR, bias: Array, sums: int) -> None:
        """W x + bias of all times."""
        raise NotImplementedError

    def recurrent_product(self, R: CSR, bias: Array | None, term: bool) -> Launch:
        """R h + bias, or R h + W x."""
        raise NotImplementedError

    def cell(self) -> Launch:
        """The cell of a time."""
        raise NotImplementedError

    def first_state(self, name: str, direction: int) -> View:
        """An initial state."""
        raise NotImplementedError

    def targets(
        self, t: int, direction: int, last: bool, slot: View, sources: dict[str, View]
    ) -> tuple[View, View, dict[str, View]]:
        """Where h and c of a time go, and all operands of the cell but h."""
        return slot, sources.get("after", slot), sources

    def add_unpacking(self, t: int, direction: int, last: bool, h: View, c: View) -> None:
        """Bring what a time leaves to the user."""


class _Vectors(_Lowering):
    """One sequence: results are written where the user has them, and read from there."""

    term = "bias"

    def __init__(self, program: Program, target: Target) -> None:
        super().__init__(program, target)
        self.sums_bytes, self.state_bytes = self.rows * target.size, self.hidden * target.size

    def add_input_product(self, W: CSR, bias: Array, sums: int) -> None:
        if self.times == 1:
            self.step("spmv", self._spmv(W, bias), ("y", (sums, 0)), x=self.user("x", 0))
            return
        form = _Form(self.times, spmm.panel_width(W.pattern, self.times, self.target), self.target)
        x, y = (self.buffer(form.bytes(n)) for n in (self.features, self.rows))
        self.step("pack", form.packing(self.features), ("blocked", (x, 0)), user=self.user("x", 0))
        self.step(form.kernel, form.product(W, bias), ("y", (y, 0)), x=(x, 0))
        self.step("unpack", form.unpacking(self.rows), ("user", (sums, 0)), blocked=(y, 0))

    def recurrent_product(self, R: CSR, bias: Array | None, term: bool) -> Launch:
        return self._spmv(R, bias)

    def _spmv(self, W: CSR, bias: Array | None) -> Launch:
        plan = spmv.plan_spmv(W.pattern, self.target)
        return spmv.with_values(spmv.prepare(plan, self.target), plan, plan.pack(W.data)).fixed(bias=bias)

    def cell(self) -> Launch:
        return recurrent.prepare(self.operator.kind, self.hidden, 1, (0, 0), self.target)

    def first_state(self, name: str, direction: int) -> View:
        return self.user(name, direction * self.state_bytes) if name in self.users else self.zeros()

    def targets(
        self, t: int, direction: int, last: bool, slot: View, sources: dict[str, View]
    ) -> tuple[View, View, dict[str, View]]:
        final = direction * self.state_bytes
        if "Y" in self.users:
            slot = self.user("Y", (t * len(self.operator.directions) + direction) * self.state_bytes)
        if last and "Y_h" in self.users:
            sources["also"] = self.user("Y_h", final)
        if last and "Y_c" in self.users:
            sources["after"] = self.user("Y_c", final)
        return slot, sources.get("after", slot), sources


class _Panels(_Lowering):
    """Several sequences."""

    term = "residual"

    def __init__(self, program: Program, target: Target) -> None:
        super().__init__(program, target)
        width = spmm.panel_width(self.operator.directions[0].R.pattern, self.samples, target)
        self.form = _Form(self.samples, width, target)
        self.x_bytes, self.sums_bytes, self.state_bytes = map(self.form.bytes, (self.features, self.rows, self.hidden))
        self.x = self.buffer(self.times * self.x_bytes)

    def pack_input(self) -> None:
        packing, row = self.form.packing(self.features), self.samples * self.features * self.target.size
        for t in range(self.times):
            self.step("pack", packing, ("blocked", (self.x, t * self.x_bytes)), user=self.user("x", t * row))

    def add_input_product(self, W: CSR, bias: Array, sums: int) -> None:
        product = self.form.product(
            W, bias, batches=self.times, x_batch_stride=self.x_bytes, y_batch_stride=self.sums_bytes
        )
        self.step(self.form.kernel, product, ("y", (sums, 0)), x=(self.x, 0))

    def recurrent_product(self, R: CSR, bias: Array | None, term: bool) -> Launch:
        return self.form.product(R, bias, residual=term)

    def cell(self) -> Launch:
        count = self.hidden * self.form.width * self.target.lanes
        strides = self.form.stride(self.rows), self.form.stride(self.hidden)
        return recurrent.prepare(self.operator.kind, count, self.form.panels, strides, self.target)

    def first_state(self, name: str, direction: int) -> View:
        if name not in self.users:
            return self.zeros()
        view = self.buffer(self.state_bytes), 0
        self.step("pack", self.form.packing(self.hidden), ("blocked", view), user=self._final(name, direction))
        return view

    def _final(self, name: str, direction: int) -> View:
        return self.user(name, direction * self.samples * self.hidden * self.target.size)

    def add_unpacking(self, t: int, direction: int, last: bool, h: View, c: View) -> None:
        found = [(h, "Y", t * len(self.operator.directions) + direction)]
        found += [(h, "Y_h", direction), (c, "Y_c", direction)] if last else []
        for view, name, number in found:
            if name in self.users:
                user = self._final(name, number)
                self.step("unpack", self.form.unpacking(self.hidden), ("user", user), blocked=view)


class _Form:
    """Features of samples in panels."""

    def __init__(self, samples: int, width: int, target: Target) -> None:
        self.samples, self.width, self.target = samples, width, target
        self.panels = -(-samples // (width * target.lanes))
        self.kernel = f"spmm batch-blocked, tile {width}"

    def stride(self, features: int) -> int:
        """Bytes between panels."""
        return layouts.panel_stride(features, self.width, self.target)

    def bytes(self, features: int) -> int:
        """Bytes of all panels."""
        return self.panels * self.stride(features)

    def packing(self, features: int) -> Launch:
        """From rows of samples; operands user, blocked."""
        panels = layouts.feature_panels(features, self.width, self.target)
        return layouts.pack_blocked(panels, self.samples, self.target)

    def unpacking(self, features: int) -> Launch:
        """To rows of samples; operands blocked, user."""
        panels = layouts.feature_panels(features, self.width, self.target)
        return layouts.unpack_blocked(panels, self.samples, self.target)

    def product(self, W: CSR, bias: Array | None, *, residual: bool = False, **between: int) -> Launch:
        """W x + bias; operands x, y, residual."""
        weight = planned(W, spmm.plan_panels, self.samples, self.width, self.target)
        strides = {"y_row_stride": self.width * self.target.vector, **between}
        return prepared(weight, Linear(W, bias), self.target, residual=residual, **strides)
