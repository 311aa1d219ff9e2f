"""Networks with any normalizer, after Lubana et al. 2021, "Beyond BatchNorm", arXiv 2106.05956."""
