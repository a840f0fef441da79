"""How rules ask lvis_rcnn/runs/paths.py for their files, and Snakemake to rerun no more than a change touches."""

from lvis_rcnn.config.study import identities_of_step, settings_digest
from lvis_rcnn.config.zoo import DEFAULT_SOURCES
from lvis_rcnn.reporting import (
    CALIBRATION,
    CARD,
    COMPARISON,
    DIFFERENCES,
    PAGES,
    PICTURES,
    TABLE,
    TRAINING_BATCH,
    plots_of,
)
from snakemake_internals import untracked


def settings(step, row=None):
    """Parameters that rerun ``step``: the sections of the study that it uses, without what has no effect."""
    return next(identities_of_step(paths.study_of(row) if row else study, step))


def digest(step, row=None):
    """With it a step refuses a study file that changed after the jobs were planned."""
    return settings_digest(paths.study_of(row) if row else study, step)


def of_row(function):
    """A function of a row for Snakemake, whose rules name a row, a run (group/member) or a published model."""

    def of_job(wildcards):
        return function(paths.row_of(dict(wildcards.items())))

    return of_job


def settings_of_row(step):
    """:func:`settings` of the row of a job."""
    return of_row(lambda row: settings(step, row))


def digest_of_row(step):
    """:func:`digest` of the row of a job."""
    return of_row(lambda row: digest(step, row))


def of_split(function):
    """A function of the validation split that a row is scored on, for Snakemake."""
    return of_row(lambda row: function(paths.split_of(row)))


def shown(path, caption, chapter_and_title, **labels):
    """A file that Snakemake's report shows, with workflow/report/CAPTION.rst."""
    chapter, title = chapter_and_title
    return report(
        path,
        caption=f"../report/{caption}.rst",
        category=chapter,
        labels={**labels, "shows": title},
    )
