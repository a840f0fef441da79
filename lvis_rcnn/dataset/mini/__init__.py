"""The embedded dataset: LVIS in miniature, drawn.

categories  what there is to draw
paint       how an object is painted, and its outline found
scenes      which image shows what; images and annotations of a split
"""
