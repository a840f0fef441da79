"""Python imports this by itself where it stands on PYTHONPATH: trainings of the cluster's tests last, and cost little.

The four backbones are as small as they can be, a step sleeps for STEP_S so that a training can be interrupted in its
middle while the machine is free for others, and checkpoints are CHECKPOINT_S apart. Snakemake asks for the state of its
jobs every 4 seconds. Everything else is the real thing.
"""

import os
import sys

STEPS = ("lvis_rcnn.train", "lvis_rcnn.infer", "lvis_rcnn.measure")


def make_network_small() -> None:
    """The same modules with a thirtieth of the channels in their heads, and one block a stage."""
    import dataclasses

    from torch import nn

    from lvis_rcnn.config.schema import BACKBONES
    from lvis_rcnn.model import backbone, mask_rcnn, roi_heads

    for name, row in BACKBONES.items():
        BACKBONES[name] = dataclasses.replace(row, blocks=(1, 1, 1, 1), groups=1, width_per_group=32)
    backbone.FPN_CHANNELS = mask_rcnn.FPN_CHANNELS = 8
    roi_heads.HIDDEN = 32
    mask_head = roi_heads.MaskRCNNHeads
    roi_heads.MaskRCNNHeads = lambda channels, layers, dilation: mask_head(channels, (8, 8), dilation)

    def narrow(self, num_labels: int, kind: str) -> None:
        nn.Module.__init__(self)
        self.kind = kind
        self.conv5_mask = nn.ConvTranspose2d(8, 8, 2, 2)
        self.mask_fcn_logits = nn.Conv2d(8, num_labels - 1, 1)

    roi_heads.MaskPredictor.__init__ = narrow


def make_training_long() -> None:
    import time
    from pathlib import Path

    from lvis_rcnn.training import recorder
    from lvis_rcnn.training import step as step_module

    take_step = step_module.take_step

    def slow_step(training, groups, step, **options):
        time.sleep(float(os.environ["STEP_S"]))
        if Path("crash_at").exists():
            at, backbone = Path("crash_at").read_text().split()
            if step == int(at) and backbone in sys.argv:
                raise RuntimeError("no step can be taken here")
        return take_step(training, groups, step, **options)

    step_module.take_step = slow_step
    every_s = float(os.environ["CHECKPOINT_S"])
    recorder.Recorder.save_is_due = lambda self: self.lease is not None and time.monotonic() - self.saved_at > every_s


def ask_evenly() -> None:
    """Snakemake's SLURM executor waits ten seconds longer after each answer that no job has ended, up to 180."""
    from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

    RemoteExecutor.next_seconds_between_status_checks = property(lambda self: 4, lambda self, seconds: None)


if (
    any(step in sys.orig_argv for step in STEPS)
    and "STEP_S" in os.environ
    and "torch.distributed.run" not in sys.orig_argv
):
    make_network_small()
    if "lvis_rcnn.train" in sys.orig_argv:
        make_training_long()

if "--profile" in sys.orig_argv and "STEP_S" in os.environ:
    ask_evenly()
