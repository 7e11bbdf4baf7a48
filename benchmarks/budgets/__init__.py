"""The parts of budgets.py."""
