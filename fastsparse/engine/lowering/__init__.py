"""Lowering: a program becomes the steps of a schedule, one file per layout of activations."""
