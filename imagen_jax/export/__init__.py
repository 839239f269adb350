"""Trained cascades in forms that leave the house."""
