"""Published KV-cache quantizers, written from their papers, to be measured on the same tensors as pagedvid's codecs.

Every file has one function: numbers in, the numbers that come back out of storage and the bits that storage takes.
"""
