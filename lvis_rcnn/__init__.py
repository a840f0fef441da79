"""Mask R-CNN with four FPN backbones on LVIS, from annotations to the results table.

The files of this package, in data-flow order, are the method; a module imports only modules above it:

    backbones          the four networks, as rows of one table
    command, files     how every step starts, reports and fails; files appear whole or not at all
    download, unpack   files arrive whole: resumed, checked; the one JSON file of a zip
    sections, config   what a study may say; its file becomes checked values
    zoo, published     published models, and those that a study scores
    run_identity       what makes two trainings the same
    sources, fetch     the files of LVIS: where they come from, which a study lacks; brings one of them
    provenance         what produced a number
    holder, lease      one trainer at a time on one state folder
    allocation         what a process has of a machine or a cluster
    gpu_lease          GPUs of its own for a command, where no scheduler gives them
    attempts           every start of a run and how it ended
    mini*              draws the embedded dataset
    array_file         a .npy file that grows
    annotation_text    a file of a gigabyte, a piece at a time
    annotation_records what an LVIS JSON file may hold
    run_lengths        masks as lengths of runs
    annotation_outlines  segmentations become arrays, or the line that says what is wrong
    annotation_pieces  a piece of the usual spelling becomes arrays in one pass
    annotation_rows    all records become rows of arrays
    annotation_file    a whole file, checked
    annotations        LVIS JSON becomes a memory-mapped store
    lvis_versions      which version a file is, by its content
    image_files        images in folders, or in zips as they were downloaded
    figures            how every plot looks and is written
    sampling_figure    what oversampling does, as a picture
    repeat_factors     how often each image is drawn
    sample_stream      which images each step sees, a pure function of (seed, step)
    schedule           budgets and learning rates, pure functions of the step
    image_checks       every image there, readable, of the annotated size
    preflight_page, preflight   finds what is wrong before a GPU is touched, and says so on a page
    pixels             the published pixel chain
    mask_crops         bitmaps of objects, each only as large as its object
    data               images and targets, batches
    model/             four backbones, one FPN, one Mask R-CNN, with MMDetection's arithmetic
    ranks              the processes of one training
    gradient_step      losses, one sum over all processes, an update that no infinity passes
    mmdet_weights      MMDetection's names and rows become ours, and back
    mmdet_files        files of MMDetection, read with suspicion
    initial_weights    what a training begins with
    checkpoints        saves models; imports and exports MMDetection's
    run_state          saves and restores a run
    training_log       what a run says while it trains
    tensorboard_files  the same for TensorBoard
    finished_run       what a run is made from, and what it leaves
    run_records        what a run keeps while it trains
    run_start          how a run begins, or goes on
    train              gradient steps, resumable anywhere
    detections         carries detections from inference to scoring
    paste              masks into their image, as run lengths or bitmaps
    detector           a trained network, and what it finds in an image
    infer              finds objects in all, streamed to disk
    measure            memory and speed of a row
    truth, masks, results_file  what is scored, and anyone's detections, as arrays
    cells, overlaps, match, accumulate    what is judged, what overlaps, who finds what, what that is worth
    score              federated LVIS AP
    outcomes, matches_file    what is kept of a scored run
    bootstrap, row_intervals   how far each metric would move with other images, and with other seeds
    official           the lvis package beside it
    evaluate           scores a run, or anyone's results
    pairs, scored_runs, compare   which rows are compared; whether they differ, and where
    runs, table_rows   what all runs have recorded, as rows
    row_plots, category_plots, difference_plots   plots with a point for each row, each category, each difference
    printed_table, table_captions   the cells of the table as printed, and what stands around them
    html_pages         pages that need no network
    report             the table; two runs side by side
    run_states, plan, status    how far each run is, and what is left to do
    curves, plots      what was measured, as plots
    drawing, scenes, missed_objects, pictures   what a run finds and misses, as pictures
    training_pictures  a training step as the network sees it
    pages              table, categories, cost, provenance as pages

Axes, the same letters in every annotation:

    n  images (of a dataset or a batch)      a  annotations of one image
    c  categories                            r  regions of one image
    d  detections of one image               h, w  image height and width, pixels

Labels: category ids are those of the annotation file; a *label* is 1 + the category's position in the file, 0 is
background, so ``num_labels = num_categories + 1``. Boxes carry their form in the name: ``boxes_xyxy``, ``boxes_xywh``.
"""

__version__ = "0.1.0"
