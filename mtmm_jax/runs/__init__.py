"""Several runs: planned and compared, cross-validated, averaged, ensembled.

plans       what a sweep tries          trials    runs them, in turn or side by side
fronts      table, Pareto front, plot   folds     task weights chosen by cross-validation
soups       parameters averaged         votes, ensembles, fused   predictions fused
"""
