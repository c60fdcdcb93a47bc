"""The half of Trivet that obeys: zygotes, and the runtimes inside an execution environment.

Standard library only, so that any CPython >= 3.9 can run it.
"""
