"""What a person sees.

rows         what all runs recorded, as rows
table        table.md, .csv and .json: columns, cells, captions
figures      how every plot looks
plots        the plots of a study; training curves
score_plots  plots of rows and of categories
comparison   differences, as text and as plots
drawing      objects on images
pictures     what a run finds and misses
html         how every page looks
pages        table, categories, cost and provenance as pages
"""
