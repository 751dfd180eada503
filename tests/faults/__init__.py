"""Faults that a long run meets: what must hold after each."""
