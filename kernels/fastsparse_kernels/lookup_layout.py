"""How a matrix lies for SpMV by lookup in registers, see `lookup.py`.

Columns are cut into chunks of 32, 64 or 128, which 2, 4 or 8 vector registers hold. What a row has in a chunk goes into
half a vector (`SHARE` lanes), or into several; the other half is that of the row eight behind it. A vector's places are
bytes, the columns within the chunk; lanes without a nonzero have a place of `NOWHERE`, and no value: values lie one
behind the other and are expanded on the way. So a vector of nonzeros costs a lookup, one multiply-add and a store,
where the SpMV of `spmv.py` loads every x by itself.
"""

from __future__ import annotations

BITS, LANES = 32, 16
SHARE = LANES // 2  # lanes of a row
NOWHERE = 0x80  # the place of a lane without a nonzero
TABLES = (1, 2, 4)  # variants: pairs of registers that hold a chunk
CHUNK = 2 * LANES  # columns that one lookup reaches
TILE_BYTES = SHARE * LANES * BITS // 8  # of the sums of a tile, 16 rows
