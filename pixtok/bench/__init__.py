"""Measurements, as ratios and rates of one run on this machine."""
