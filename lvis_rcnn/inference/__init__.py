"""Detections of a trained network.

detector  a trained network and its detections in a batch
paste     masks in their image, as run lengths or bitmaps
shards    detections of a dataset as shards, of which a new start writes the missing ones
"""
