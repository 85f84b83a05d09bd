"""How a matrix lies for SpMV by lookup in registers, see `lookup.py`.

Columns are cut into chunks of `CHUNK`, which eight vector registers hold. Within each chunk the rows of a group are
sorted by their nonzeros there, and cut into slices of 16: row i of a slice has lane i, and the slice's vector n holds
nonzero n of each of its rows. Rows of a slice have about as many nonzeros, so that few lanes are left empty. (Slices of
sorted rows: SELL-C-sigma, Kreutzer et al. 2014; here rows are sorted for every chunk anew.) A nonzero's place is a
byte, its column within the chunk; that of an empty lane is `NOWHERE`, and its value 0.

Each chunk has an order of rows of its own, so every slice's sums are kept in the order of the chunk, and `positions`
tell, for each row, where it has its sum.
"""

from __future__ import annotations

BITS, LANES = 32, 16
TABLES = 8  # vector registers that hold a chunk
CHUNK = TABLES * LANES  # columns
NOWHERE = 0xFF  # the place of a lane without a nonzero: its highest bit is set
