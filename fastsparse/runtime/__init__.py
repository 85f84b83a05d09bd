"""What all operations share and none owns: threads, memory, launches, caches, the machine."""
