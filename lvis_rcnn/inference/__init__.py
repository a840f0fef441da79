"""Detections of a trained network.

detector    a trained network and its detections in a batch
paste       masks in their image, as run lengths or bitmaps
standalone  a model without its study, as `detect` uses it
kept        scores of weights that a training kept on its way
shards      detections of a dataset as shards, of which a new start writes the missing ones
"""
