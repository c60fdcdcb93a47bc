"""The half of Trivet that translates: what happens outside becomes Events, Replies go back out.

Adapters see only what `trivet` exports.
"""
