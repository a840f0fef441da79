"""A run on disk: written by training, read by the table and by status.

paths      where the files of a study lie and what its steps read, for the rules
records    what each run has recorded, or why not
shapes     what each record must hold
identity   what makes two runs the same, and under which name one was begun
attempts   every start of a run and how it ended; whether it is tried again
lease      one trainer at a time on one state folder
points     AP so far: weights kept on the way, and their scores
inference  how far an inference is, by what it has saved
price      what a training costs by its arithmetic, before a step is timed
states     whether a run is alive, how far it is, what is left and what it costs
"""
