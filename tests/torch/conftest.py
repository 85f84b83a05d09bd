"""What pytest must not collect here."""

collect_ignore = ["two_processes.py"]  # a program of its own, which needs PyTorch
