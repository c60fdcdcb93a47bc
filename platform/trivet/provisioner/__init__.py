"""The provisioner: makes networks and scratch space for environments, ahead of their need.

It is root and apart, because the zygotes that enter these hold no packages from outside, and the
supervisor that asks for them holds no privilege. It takes numbers and addresses of fixed shapes
and never reads a byte that a user wrote.
"""
