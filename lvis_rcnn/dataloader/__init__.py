"""Which images a step sees, and what the network sees of them.

repeat_factors  how often each image is drawn in an epoch
seeds           what every random number of a run is seeded with
sampler         the images of every step, a pure function of (seed, step)
transforms      the published pixel chain
masks           bitmaps of objects, each only as large as its object
batches         images and targets, read ahead
"""
