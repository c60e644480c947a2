"""The mathematics of noise: schedules, the forward process, densities and weights. No networks."""
