"""Comp-DD, the complex data set distillation benchmark: sixteen subsets of ImageNet-1K.

Wang et al. 2025, arXiv:2410.17193; specification of trajectory matching, section 8.
"""

from stillroom.comp_dd.subsets import CATEGORIES, SIDES, Subset, load_comp_dd, subset_name

__all__ = ["CATEGORIES", "SIDES", "Subset", "load_comp_dd", "subset_name"]
