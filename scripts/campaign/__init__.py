"""Attacks on the commands of this toolkit: killed, starved, fed damaged and hostile files.

A part is a function of a `Case`; everything random in it comes from the case's own generator.
"""
