"""Offer what the notebooks need to be worked with: exercises that answer, predictions, pictures.

A file holds the exercises of one family, beside the formulas that they ask for: `diffusion` (notebooks 01, 03),
`kernels` (02), `preference` (04 to 08), `policy_gradient` (09), `reward_difference` (10 to 12),
`distribution_matching` (13 to 17), `training` (06, 18). `exercise` has what they share.
`schematics` draws pictures that explain, `interactive` lets the reader move a figure, `algorithm` lays a paper's
algorithm beside the code.
"""
