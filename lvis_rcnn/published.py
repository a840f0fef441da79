"""The published models that a study scores without training, as rows of the zoo."""

from pathlib import Path

from lvis_rcnn.command import InputError
from lvis_rcnn.config import Study, zoo_of
from lvis_rcnn.zoo import ZooModel, load_zoo

# What of the zoo can be scored on LVIS; the other kinds only initialise a training (model.weights).
SCORED_KINDS = ("lvis_v0.5", "lvis_v1")


def known_models(study: Study, study_file: Path) -> dict[str, ZooModel]:
    """All rows of the study's zoo: those that it scores, and those that its trainings are compared with.

    Raises:
        InputError: as :func:`scored_models`, or the zoo is wrong.
    """
    scored_models(study, study_file)
    return load_zoo(zoo_of(study, study_file))


def scored_models(study: Study, study_file: Path) -> dict[str, ZooModel]:
    """The zoo's row of each published row of ``study``, in the study's order; the zoo is not read where there is none.

    Raises:
        InputError: the zoo is wrong, has no such model, or one of other categories.
    """
    if not study.published:
        return {}
    zoo = load_zoo(zoo_of(study, study_file))
    models = {}
    for row in study.published:
        where = f"{study_file}: published {row.model}"
        scored = [name for name, model in zoo.items() if model.kind in SCORED_KINDS]
        if row.model not in zoo:
            raise InputError(where, "is not in the zoo", allowed=", ".join(scored), mend="name a model of the zoo")
        kind = zoo[row.model].kind
        if kind not in SCORED_KINDS:
            what = f"is a model of kind {kind}, whose categories are not those of LVIS"
            mend = "name a model of LVIS; this one can initialise a training, see model.weights"
            raise InputError(where, what, allowed=", ".join(scored), mend=mend)
        models[row.model] = zoo[row.model]
    return models
