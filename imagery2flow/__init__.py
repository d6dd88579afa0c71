"""Imagery2Flow: commuting flows between census tracts from satellite imagery (Xu, Gao et al. 2025).

The folders follow the data: ``run`` (configuration, devices, files), ``sources``, ``imagery``, ``encoder``, ``flows``, ``figures``.
Imports run downwards in that order only.
"""

__version__ = "0.1.0"
