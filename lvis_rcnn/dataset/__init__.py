"""LVIS on disk: annotations, images, detections.

versions    the versions of LVIS, and which one a file is, by its content
rle         masks as run lengths
polygons    how large a polygon may be to be drawn
json_text   the text of a JSON file: found, recognised, and mended where it is nearly JSON
lookup      where ids stand in a column of ids
records     the records of an LVIS file: types, ranges, errors
pieces      a JSON file of a gigabyte, a few megabytes at a time
coco        plain COCO annotations as LVIS ones: the rules
columns     records become the arrays of a store
reader      an annotation file becomes those arrays
store       the memory-mapped annotation store
statistics  images, objects and fractal dimension of each category
images      images in folders, or in zips as they were downloaded; the one decoder
listing     images that a user names: files, folders, zips
checks      preflight's checks of a split on disk
detections  detections as shards and as results files
mini/       draws the embedded dataset
"""
