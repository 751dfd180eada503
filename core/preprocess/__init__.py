"""From a raw T1w head to a skull-stripped brain on the atlas grid, in [-1, 1].

Steps: RAS orientation, non-local means, N4 bias correction, brain extraction, 12-parameter affine to the
atlas, one interpolation, published intensity rule. Choices are measured in ``docs/decisions/registration.md``.
"""

from core.preprocess.pipeline import VERSION, Preprocessed, Step, brain_of, preprocess
from core.preprocess.scans import case_id_of, find_scans, read_scan, to_sitk
from core.preprocess.steps import correct_bias, denoise, edge_notes, extract_brain, load_template, register

__all__ = [
    "VERSION",
    "Preprocessed",
    "Step",
    "brain_of",
    "case_id_of",
    "correct_bias",
    "denoise",
    "edge_notes",
    "extract_brain",
    "find_scans",
    "load_template",
    "preprocess",
    "read_scan",
    "register",
    "to_sitk",
]
