"""Training that cannot be lost.

run            what a run is made from, and what it leaves
setup          how a run begins or goes on; whether it fits the device
solver         optimizers, learning rates, budgets
step           one gradient step
distributed    the processes of one training
checkpoint     saves and restores a run
log            log.json, heartbeat, TensorBoard
recorder       what the first process keeps while it trains
batch_picture  a training step as the network sees it
"""
