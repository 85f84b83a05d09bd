"""The demo: a sparse convolutional network on real digits, trained, saved, compiled, and raced against its baselines.

`fastsparse demo` runs it; it needs the extra `demo` (scikit-learn for the digits, Matplotlib for the pictures).
"""
