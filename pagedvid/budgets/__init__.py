"""What each head keeps, by a model's profile and one number of bytes."""

LOOK_BACKS = ("uniform", "per_head")
"""Whether all heads keep the window, or look-backs are decided together with the bits."""
