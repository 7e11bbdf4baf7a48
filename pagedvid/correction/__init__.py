"""How quantized keys are corrected, and the names of the ways to do it. Needs no PyTorch."""

MODES = ("off", "formula", "variance", "measured")
"""What formula.py and fit.py implement."""
