"""LVIS on disk: annotations, images, detections.

versions    which version of LVIS a file is, by its content
rle         masks as run lengths
records     what a record of an LVIS file may hold
reader      an annotation file of a gigabyte, a piece at a time
store       the memory-mapped annotation store
images      images in folders, or in zips as they were downloaded; the one decoder
checks      what can be wrong with a split on disk
detections  detections as shards and as results files
mini/       draws the embedded dataset
"""
