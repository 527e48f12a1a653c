"""The evaluator of the ECCV 2024 Dataset Distillation Challenge, track 1 (fixed images a class).

Specification of evaluation, section 1. A submission is two files of one tensor each; labels are
implied by position.
"""
