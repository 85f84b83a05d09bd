"""What pytest must not collect here, and what files share."""

import gc

import pytest

collect_ignore = ["two_processes.py"]  # a program of its own, which needs PyTorch


@pytest.fixture
def no_collector():
    """Objects go when nobody has them, and not when Python's collector of cycles runs."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
