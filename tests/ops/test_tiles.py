"""Tables of tiles: every output element has one writer."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fastsparse.plan import conv, lanes, linear, policy, tiles
from fastsparse.plan.linear import Machine
from tests.checking import MACHINES, PATTERNS, Array, matrix
from tests.geometries import TABLE, geometry_of


def written(found: tiles.Tiles, m: Machine) -> Counter[int]:
    """How often every element of a row is stored, by its place in bytes."""
    assert found.y_positions.shape == found.x_positions.shape == (found.count, found.width)
    whole = (found.y_positions[found.whole, :, None] + np.arange(m.lanes) * m.size).ravel()
    begin, place, count = found.pieces.T
    assert (count > 0).all()
    assert (begin + count * m.size <= found.width * m.vector).all()
    assert sorted(taken_up(found)) == list(range(len(found.pieces)))
    pieces = [np.arange(n) * m.size + p for p, n in zip(place, count, strict=True)]
    return Counter(np.concatenate([whole, *pieces]).tolist())


def taken_up(found: tiles.Tiles) -> list[int]:
    """Numbers of the pieces, tile by tile."""
    return [piece for begin, end in found.tile_pieces for piece in range(begin, end)]


def leads(machine):
    """Columns in front of the first vector of y that begins at a multiple of its bytes."""
    return sorted({0, 1, machine.lanes // 2, machine.lanes - 1})


def check_row_major(found, columns, machine):
    """Every number is written once, from the column of x that it stands for; vectors lie in a row."""
    assert written(found, machine) == Counter(range(0, columns * machine.size, machine.size))
    assert found.in_a_row(machine.vector)
    read = np.add.outer(found.x_positions, np.arange(0, machine.vector, machine.size)).reshape(found.count, -1)
    for tile, (begin, end) in enumerate(found.tile_pieces):
        if begin == end:
            np.testing.assert_array_equal(found.x_positions[tile], found.y_positions[tile])
        for at, place, count in found.pieces[begin:end]:
            stored = read[tile, at // machine.size :][:count]
            np.testing.assert_array_equal(stored, np.arange(place, place + count * machine.size, machine.size))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("width", range(1, 9))
def test_tiles_of_a_row_major_product(width, machine):
    for columns in range(1, 3 * width * machine.lanes + 2):
        for lead in leads(machine):
            found = tiles.packed_tiles(columns, width, machine.lanes, machine.size, lead)
            check_row_major(found, columns, machine)
            assert found.columns.sum() == columns
            first = tiles.first_tile(width, machine.lanes, lead)
            expected = [0, *range(first, columns, width * machine.lanes)]
            np.testing.assert_array_equal(found.x_positions[:, 0], np.array(expected) * machine.size)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("width", range(1, 9))
def test_tiles_of_a_product_that_reads_in_place(width, machine):
    for columns in range(width * machine.lanes, 3 * width * machine.lanes + 2):
        for lead in leads(machine):
            found = tiles.overlapping_tiles(columns, width, machine.lanes, machine.size, lead)
            check_row_major(found, columns, machine)
            assert found.x_positions.min() == 0
            assert found.x_positions.max() + machine.vector <= columns * machine.size, "nothing behind a row is read"


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("address", [0, 4, 16, 52, 64, 4096 + 48])
def test_tiles_stored_past_the_caches_begin_where_vectors_of_y_do(address, machine):
    assert linear.lead_columns(address, 3 * machine.vector + machine.size, machine) is None, "rows begin here and there"
    assert linear.lead_columns(address + 1, 3 * machine.vector, machine) is None
    lead = linear.lead_columns(address, 20 * machine.vector, machine)
    if address % machine.size:
        assert lead is None
        return
    for width in range(1, 9):
        for make in (tiles.packed_tiles, tiles.overlapping_tiles):
            found = make(20 * machine.lanes, width, machine.lanes, machine.size, lead)
            assert ((address + found.y_positions[found.whole]) % machine.vector == 0).all()
            assert found.whole.any()
            assert (~found.whole).sum() <= 2


@pytest.mark.parametrize("machine", MACHINES)
def test_rows_of_x_that_few_nonzeros_read_are_not_packed(rng, machine):
    few, many = (matrix(rng, rng.random((rows, 200)) < 0.1, "float32").pattern for rows in (10, 100))
    for columns in (1, machine.lanes - 1, machine.lanes, 3 * machine.lanes + 1, 40 * machine.lanes):
        stride = columns * machine.size
        for pattern, in_place in ((few, columns >= machine.lanes), (many, False)):
            plan = linear.spmm_row_major(pattern, columns, stride, machine)
            assert (plan.tiles.columns is None) == in_place
            assert written(plan.tiles, machine) == Counter(range(0, columns * machine.size, machine.size))
        for shared in (0, stride - machine.size):  # rows that share memory
            assert linear.spmm_row_major(few, columns, shared, machine).tiles.columns is not None


@pytest.mark.parametrize("machine", MACHINES)
def test_many_tiles_begin_where_vectors_do(rng, machine):
    """Of X where it is read in place, else of Y, and of Y where it is stored past the caches."""
    few, many = (matrix(rng, rng.random((rows, 200)) < 0.1, "float32").pattern for rows in (10, 200))
    columns = policy.MANY_VECTORS * machine.lanes
    machine = replace(machine, workers=1)
    far = replace(machine, l3_bytes=0)
    for leads in (
        linear.ANYWHERE,
        linear.Leads(1, 1),
        linear.Leads(1, 2),
        linear.Leads(None, 2),
        linear.Leads(2, None),
    ):
        for where, pattern, first in (
            (machine, few, leads.x), (machine, many, leads.y),
            (far, few, leads.x if leads.y is None else leads.y), (far, many, leads.y),
        ):  # fmt: skip
            plan = linear.spmm_row_major(pattern, columns, columns * machine.size, where, leads)
            tile = plan.tiles.width * machine.lanes
            begin = plan.tiles.y_positions[:, 0] // machine.size
            assert begin[1] == tile - machine.lanes + (first or machine.lanes)
            assert (np.diff(begin[1:]) == tile).all()
            assert plan.past_caches == (where is far and leads.y is not None)
    short = linear.spmm_row_major(many, columns - 1, columns * machine.size, machine, linear.Leads(1, 1)).tiles
    assert short.y_positions[1, 0] == short.width * machine.vector


def test_offsets_of_what_is_read_in_place(rng):
    machine = MACHINES[0]
    few = matrix(rng, rng.random((10, 200)) < 0.1, "float32").pattern
    wide = linear.spmm_row_major(few, 100, 2**31, machine).operator
    assert wide.blocks == 200, "what offsets of 32 bits do not reach goes to a block of its own"
    at = wide.columns.bases[wide.columns.block] + wide.columns.offset
    assert np.array_equal(at, np.arange(200) * 2**31)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", TABLE)
def test_tiles_of_convolutions(rng, name, machine):
    """Every output of the forward pass in both layouts, and every input in the phases of the backward pass."""
    geometry = geometry_of(TABLE[name])
    pattern = matrix(rng, PATTERNS["scattered"](rng, TABLE[name].shape), "float32").pattern
    flat = conv.conv_flat(pattern, geometry, machine, 1)
    everything = Counter(range(0, geometry.positions * machine.size, machine.size))
    assert written(flat.spmm.tiles, machine) == everything
    forward = conv.conv_lanes(pattern, geometry, machine, 1)
    inputs, outputs = int(np.prod(geometry.spatial)), geometry.positions
    for count, plans in (
        (outputs, [forward.spmm]),
        (inputs, conv.conv_backward_lanes(pattern, geometry, machine, 1).dx_phases),
    ):
        places = np.concatenate([vectors_written(plan.tiles, machine) for plan in plans])
        assert sorted(places) == list(range(0, count * machine.vector, machine.vector))


def vectors_written(found: tiles.Tiles, m: Machine) -> Array:
    """Places of the vectors that are stored, each whole."""
    assert (found.pieces[:, 2] == m.lanes).all()
    return np.concatenate([found.y_positions[found.whole].ravel(), found.pieces[:, 1]])


def test_lanes_planes_cover_image_and_border():
    for machine in MACHINES:
        for sizes in TABLE.values():
            padding = sizes.keywords["padding"]
            planes = lanes.lanes_planes(3, sizes.spatial, padding, machine)
            inner = planes.all_places()
            padded = np.prod([n + a + b for n, (a, b) in zip(sizes.spatial, padding, strict=True)])
            assert sorted([*inner, *planes.borders]) == list(range(0, padded * machine.vector, machine.vector))
            if len(planes.places):
                assert np.array_equal(planes.places[: planes.positions], inner)
                assert len(planes.places) % machine.lanes == 0
            assert planes.channel_stride >= padded * machine.vector
            assert planes.group_stride >= 3 * planes.channel_stride
