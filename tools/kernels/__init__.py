"""Every kernel in the configurations that real models run, for compiling them without a device; one file per room.

Shapes: head_dim 128 as in Wan, MAGI-1 and HY-WorldPlay, pages of 36 rows, BF16 activations, frames of 30 x 52 tokens.
MAGI-1 has 3 query heads per KV head in its 4.5B and 6 in its 24B size, the others 1.
"""
