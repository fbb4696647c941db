"""Real data sets whose labels come in several grains."""
