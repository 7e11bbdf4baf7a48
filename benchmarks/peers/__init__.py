"""Published KV-cache quantizers, written from their papers, to be measured on the same tensors as pagedvid's codecs.

A quantizer is a function: numbers in, the numbers that come back out of storage and the bits that storage takes.
catalogue.py lists them with their parameters; codec.py lets them run in pagedvid's own engine.
"""
