"""SynthScope's library: judges generators of 3D T1-weighted brain MRI."""

__version__ = "0.1.0"
