"""What each head keeps: chosen by a model's profile, within one budget of bytes."""

LOOK_BACKS = ("uniform", "per_head")
"""Whether all heads keep the window, or look-backs are decided together with the bits."""
