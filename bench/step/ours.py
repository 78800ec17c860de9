"""The step of train_imagenet.py."""

from training.step import gradients, update

import train_imagenet
from bench.command import say
from training import compiling, distributed


class OurStep:
    """`mark(phase)` is called where a phase ends. Images are uint8, in host memory as the labels are."""

    def __init__(self, run, stage, *, device, mark):
        self.job, self.stage, self.mark = run, stage, mark
        self.state = train_imagenet.begin_stage(run, 0, None, 0)
        self.state.model.train()
        if run.recipe.speed.compile:
            compiling.compile_stage(run, self.state, stage, stage.batch, say=say)

    def prepare(self, images, labels):
        return images, labels

    def __call__(self, images, labels):
        device = self.job.ranks.device
        images, labels = distributed.to_device(images, device), distributed.to_device(labels, device)
        self.mark("data")
        given = {"step": self.state.step, "seed": 0, "piece": self.stage.batch}
        loss = gradients(self.job, self.state, self.stage, self.forward, images, labels, **given)
        self.mark("backward")
        update(self.job, self.state, self.stage, loss)
        self.mark("optimizer")

    def forward(self, inputs):
        logits = self.state.model(inputs)
        self.mark("forward")
        return logits
