"""A whole mesh on one machine, for the demo and for the tests.

Reading order: ``echo`` (the server of the examples).
"""
