"""Data sets: built once from any source, read at random, packed into rows of slots."""
