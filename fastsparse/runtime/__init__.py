"""Shared by all operations: threads, memory, launches, caches, facts about the machine."""
