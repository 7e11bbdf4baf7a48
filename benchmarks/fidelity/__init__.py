"""The parts of benchmarks/fidelity.py, one file each, and what prints, judges and draws their results.

`import fidelity` finds this folder; the program fidelity.py of the same name is only ever run.
"""
