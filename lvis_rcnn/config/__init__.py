"""What a study may say, and its file as checked values.

schema     the sections of a study; the four backbones, rows of one table
machine    those that say where it runs: device, precision, what jobs ask of a machine
study      a study file becomes checked values, or an error that names the key; digests of what a step uses
explained  the error in a study file, as one line
yaml_files  YAML as studies are written in it: a value that may be read as two things is an error
protocols  the protocols by which detections can be scored, by name
zoo        published models, and where the files of LVIS come from: the rows of configs/zoo
__main__   checks study files, writes their JSON Schema: ``python -m lvis_rcnn.config``

Below are limits that a study and an option of a step share: here, so that a step has them without the sections.
"""

# With larger ones the copies of an image may exceed 64 bits, of a million images those of an epoch.
MOST_EXPONENT = 2

# More say nothing new of an interval, and take hours.
MOST_RESAMPLES = 100_000
