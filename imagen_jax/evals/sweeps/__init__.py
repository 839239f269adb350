"""Sweeps of sampling settings: a tree of points, drawn in units that several processes share, measured, tabled."""
