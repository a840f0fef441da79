"""Training that can be stopped at any moment and goes on from its last checkpoint.

In the order in which a training passes through them:

    run            what a run is made from, and the files it leaves
    setup          how a run begins or goes on
    memory         how much of a GPU a step needs
    step           one optimizer step
    recorder       what the first process writes while it trains
    solver         optimizers, learning rates, budgets
    distributed    the processes of one training
    checkpoint     saves and restores a run
    log            log.json, heartbeat, TensorBoard
    batch_picture  a training step as the network sees it
"""
