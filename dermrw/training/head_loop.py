"""Training of the head on embeddings that the frozen backbone computes once (`model.freeze=backbone`)."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dermrw.errors import UserError
from dermrw.models import Head
from dermrw.objectives.held_out import HeldOutWeights
from dermrw.training.embeddings import embeddings, number_of_views
from dermrw.training.loop import COUNTERS, Loop

SAMPLE = 16  # embeddings in a checkpoint, by which a resumed run sees that they are the same
TOLERANCE = 0.05  # of their standard deviation


class HeadLoop(Loop):
    """The loop over epochs and steps for a head that is trained on embeddings. Checkpoints hold the whole network."""

    saves_every_epoch = False  # an epoch takes a second, the file of a large backbone more
    attributes = frozenset({*COUNTERS, "sample"})
    sample: Tensor | None = None  # some of the embeddings that the head was trained on so far

    def trained_part(self) -> nn.Module:
        """Returns the head."""
        return Head(self.network)

    def fit(self) -> None:
        """Trains as `Loop.fit`. On a CPU, the steps of the head use one thread."""
        threads = torch.get_num_threads()
        try:
            super().fit()
        finally:
            torch.set_num_threads(threads)

    def prepare(self) -> None:
        """Computes the embeddings, or opens those of an earlier pass.

        Raises:
            UserError: a resumed head was trained on other embeddings.
        """
        found = embeddings(self.run, self.network, self.splits, self.config, self.placement, self.job)
        self.compare(torch.from_numpy(found[np.linspace(0, len(found) - 1, SAMPLE).astype(int)]))
        if isinstance(self.objective, HeldOutWeights) and self.objective.values is None:
            self.weigh_labels(self.objective, found)
        views, n, v = number_of_views(self.config), len(self.splits.train), len(self.splits.validation)
        self.views = found[: views * n].reshape(views, n, -1)
        self.validation_part = self.job.part(np.arange(views * n, views * n + v))
        self.embedded = found
        meta = torch.from_numpy(np.array(found[views * n + v :]))
        meta_y = torch.as_tensor(self.splits.meta.labels.copy())
        self.meta = meta.to(self.placement.device), meta_y.to(self.placement.device)
        torch.set_num_threads(1)  # several would wait for each other longer than they compute

    def compare(self, sample: Tensor) -> None:
        """Checks that a resumed head was trained on these embeddings `[SAMPLE, D]`, to the rounding of other machines.

        Raises:
            UserError: it was trained on others, or by a version that does not keep them.
        """
        known, self.sample = self.sample, sample
        if not self.steps_done:
            return
        if known is None or known.shape != sample.shape or (known - sample).abs().max() > TOLERANCE * sample.std():
            raise UserError(
                f"the head in {self.run / 'last.pt'} was trained on other embeddings than those that this version "
                "computes of these images now: start a new run"
            )

    def examples(self, parts: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields embeddings float32 `[B, D]`, labels and rows. An epoch uses one random view of each image."""
        entropy = [self.config.train.seed, self.epoch, 1]
        view = np.random.default_rng(entropy).integers(len(self.views), size=len(self.splits.train))
        labels = torch.as_tensor(self.splits.train.labels.copy())
        for rows in parts:
            x = torch.from_numpy(self.views[view[rows], rows])
            yield x, labels[rows], torch.from_numpy(rows)

    def to_x(self, images: Tensor) -> Tensor:
        """Moves embeddings to the device."""
        return images.to(self.placement.device)

    def meta_batches(self, steps: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Returns the embeddings and the labels of the meta set, for each step."""
        return itertools.repeat(self.meta, steps)

    @torch.no_grad()
    def validation_logits(self, model: nn.Module) -> np.ndarray:
        """Returns the logits of this process's part of the validation split, float32 `[N, C]`."""
        model.eval()
        rows = self.validation_part
        parts = [rows[i : i + 1024] for i in range(0, len(rows), 1024)] or [rows]
        return np.concatenate([model(self.to_x(torch.from_numpy(self.embedded[part]))).cpu() for part in parts])

    def network_state(self, model: nn.Module) -> dict[str, Tensor]:
        """Returns the state dict of the whole network with the weights of this head."""
        assert isinstance(model, Head)
        own = {f"{model.name}.{name}": tensor for name, tensor in model.linear.state_dict().items()}
        return {**self.network.state_dict(), **own}
