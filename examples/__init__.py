"""Sparse networks trained on real data that comes with common packages: `python -m examples.mnist`, and so on.

`digits`, `mnist`, `text` and `genes` each train one sparse network and its dense twin and draw what came out;
`compare` trains all of them, with five seeds, and prints one table.
"""
