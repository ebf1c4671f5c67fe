"""Negative data augmentation for video representation learning.

``from ndavid import nda`` gives the ops and ``ndavid.losses`` the objective;
nothing else is dragged in.
"""

__version__ = "0.1.0"
