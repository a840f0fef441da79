"""A trained network finds objects.

detector  a trained network, and what it finds in a batch
paste     masks into their image, as run lengths or bitmaps
shards    detections of a dataset as shards, from where an earlier start stopped
"""
