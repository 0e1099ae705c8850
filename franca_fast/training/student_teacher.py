"""Student and teacher: the networks of a run and the loss of a batch.

Nothing here knows of devices, precision, sharding or the optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import Self

from franca_fast.config.data import mean_masked_patches
from franca_fast.config.schema import Config
from franca_fast.data import Batch
from franca_fast.hub.run_folder import backbone_arguments
from franca_fast.losses import ClusteringLoss, KoLeoLoss, NestedDINOLoss, NestedIBOTLoss
from franca_fast.models import NestedPrototypeHead, VisionTransformer, build_backbone
from franca_fast.ops import ClusteringTargets, Scores, split_rows


@dataclass
class Losses:
    """The loss of a batch.

    Attributes:
        total: scalar to differentiate, the sum of all terms.
        terms: weighted terms without gradient: "dino_global", "dino_local" and "ibot", one value
            for each nested head [H], and the scalar "koleo"; those with weight 0 are left out.
        targets: the teacher's assignments behind them, "dino" and "ibot".
    """

    total: Tensor
    terms: dict[str, Tensor]
    targets: dict[str, ClusteringTargets]

    def parts(self) -> dict[str, Tensor]:
        """The "total" and the terms, all without gradient."""
        return {"total": self.total.detach(), **self.terms}


class ScoredRows(NamedTuple):
    """How many rows of prototype scores one nested loss reads in a batch, on average.

    Attributes:
        head: of the student; it scores them.
        teacher: rows of the teacher's scores.
        student: rows of the student's.
        terms: cross-entropies that read them.
    """

    head: NestedPrototypeHead
    teacher: int
    student: int
    terms: int


class Network(nn.Module):
    """A backbone with the nested heads that the losses need, with random weights.

    Its children are `backbone` and the heads: `dino_head` scores CLS tokens, and patches where it
    is shared; `ibot_head` scores patches where they have one of their own.
    """

    def __init__(self, config: Config, *, drop_path_rate: float) -> None:
        super().__init__()
        separate = config.ibot.loss_weight > 0 and config.ibot.separate_head
        self.backbone = build_student_backbone(config, drop_path_rate=drop_path_rate)
        needed = config.dino.loss_weight > 0 or not separate
        for section, has_head in (("dino", needed), ("ibot", separate)):
            if has_head:
                self.add_module(f"{section}_head", _build_head(config, section))

    def heads(self) -> dict[str, NestedPrototypeHead]:
        """All heads by name."""
        return {
            name: cast("NestedPrototypeHead", module)
            for name, module in self.named_children()
            if name != "backbone"
        }

    def head_of(self, loss: str) -> NestedPrototypeHead:
        """The head whose scores a nested loss reads: `<loss>_head`, or the one that is shared."""
        heads = self.heads()
        return heads[f"{loss}_head" if f"{loss}_head" in heads else "dino_head"]


class StudentTeacher(nn.Module):
    """Two networks of one shape, and the losses between them.

    The teacher starts as a copy of the student, has no gradients and no stochastic depth.

    Args:
        config: architecture, heads, losses and weights.

    Attributes:
        student: the network that is trained.
        teacher: the network that follows it.
        weights: of the losses that are computed: "dino", "ibot" and "koleo".
        streamed_scores: whether scores are recomputed block by block instead of stored.
        koleo_over_ranks: whether KoLeo seeks neighbours among the images of all ranks.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.streamed_scores = config.train.scores == "streamed"
        weights = {
            "dino": config.dino.loss_weight,
            "ibot": config.ibot.loss_weight,
            "koleo": config.dino.koleo_loss_weight,
        }
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.koleo_over_ranks = config.dino.koleo_over_ranks
        self.student = Network(config, drop_path_rate=config.student.drop_path_rate)
        # Without storage first: initialising 250,000 prototypes only to overwrite them is slow.
        with torch.device("meta"):
            self.teacher = Network(config, drop_path_rate=0.0)
        copies = {name: tensor.clone() for name, tensor in self.student.state_dict().items()}
        self.teacher.load_state_dict(copies, assign=True)
        self.teacher.requires_grad_(False)
        self.teacher.eval()
        self.koleo_loss = KoLeoLoss()
        if "dino" in self.weights:
            out_dims = self.student.head_of("dino").out_dims
            self.dino_loss = NestedDINOLoss(out_dims, centering=config.train.centering)
        if "ibot" in self.weights:
            out_dims = self.student.head_of("ibot").out_dims
            self.ibot_loss = NestedIBOTLoss(out_dims, centering=config.train.centering)

    def forward(
        self, batch: Batch, teacher_temp: float, group: dist.ProcessGroup | None = None
    ) -> Losses:
        """The loss of a batch at a teacher temperature.

        Args:
            batch: the images.
            teacher_temp: the temperature.
            group: of ranks with as many images each. The assignments are balanced, and the CLS
                tokens spread, over all of them; the mean of their losses is that of one process
                with all images.
        """
        targets = self._targets(batch, teacher_temp, group)
        crops = [batch.global_crops]
        masks: list[Tensor | None] = [batch.masks]
        if batch.local_crops is not None:
            crops.append(batch.local_crops)
            masks.append(None)
        tokens = self._tokens(self.student, batch, crops, masks)
        scores = self._scores(self.student, tokens)
        terms: dict[str, Tensor] = {}
        if weight := self.weights.get("dino"):
            image_scores = scores["dino"]
            local = image_scores[1] if len(image_scores) > 1 else None
            parts = self.dino_loss(image_scores[0], local, targets["dino"], overwrite_student=True)
            terms["dino_global"] = weight * parts["global"]
            terms["dino_local"] = weight * parts["local"]
        if weight := self.weights.get("ibot"):
            n_crops = batch.global_crops.shape[0]
            (patch_scores,) = scores["ibot"]
            per_head = self.ibot_loss(
                patch_scores, targets["ibot"], batch.mask_weights, n_crops, overwrite_student=True
            )
            terms["ibot"] = weight * per_head
        if weight := self.weights.get("koleo"):
            # The two crops of an image are meant to be close, so each crop is spread on its own.
            ranks = group if self.koleo_over_ranks else None
            crops_of = tokens["dino"][0].chunk(2)
            spread = torch.stack([self.koleo_loss(crop, group=ranks) for crop in crops_of])
            terms["koleo"] = weight * spread.sum()
        total = torch.stack([term.sum() for term in terms.values()]).sum()
        return Losses(total, {name: term.detach() for name, term in terms.items()}, targets)

    @torch.no_grad()
    def update_centers(
        self, targets: Sequence[Mapping[str, ClusteringTargets]], finite: Tensor
    ) -> None:
        """Moves the centres of "centering" towards a step, if `finite` (0-dim bool) holds.

        Args:
            targets: of each micro-batch of the step; only their means are looked at.
            finite: whether the step is kept.
        """
        for name, of_loss in targets[0].items():
            loss = self._nested_loss(name)
            if loss.center is not None:
                heads = zip(*(each[name].mean_scores or () for each in targets), strict=True)
                mean = tuple(torch.stack(head).mean(dim=0) for head in heads)
                before = loss.center.clone()
                loss.update_center(of_loss._replace(mean_scores=mean))
                loss.center.copy_(torch.where(finite, loss.center, before))

    def scored_rows(self, config: Config) -> list[ScoredRows]:
        """The scores that each nested loss reads, in the batch of one process."""
        batch, local = config.train.batch_size_per_gpu, config.crops.local_crops_number
        masked = mean_masked_patches(config)
        rows = {
            "dino": (2 * batch, (2 + local) * batch, 1 + (local > 0)),
            "ibot": (masked, masked, 1),
        }
        return [
            ScoredRows(self.student.head_of(name), *counts)
            for name, counts in rows.items()
            if name in self.weights
        ]

    def train(self, mode: bool = True) -> Self:
        """Sets the student's mode; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def _targets(
        self, batch: Batch, teacher_temp: float, group: dist.ProcessGroup | None
    ) -> dict[str, ClusteringTargets]:
        tokens = self._tokens(self.teacher, batch, [batch.global_crops], [None])
        scores = self._scores(self.teacher, tokens)
        return {
            name: self._nested_loss(name).targets(of_loss, teacher_temp, group=group)
            for name, (of_loss,) in scores.items()
        }

    def _nested_loss(self, name: str) -> ClusteringLoss:
        return cast("ClusteringLoss", getattr(self, f"{name}_loss"))

    def _tokens(
        self,
        network: Network,
        batch: Batch,
        crops: Sequence[Tensor],
        masks: Sequence[Tensor | None],
    ) -> dict[str, list[Tensor]]:
        """What each nested loss looks at: CLS tokens, and the masked patches of the global crops.

        The backbone's last block computes no others.
        """
        nothing = batch.mask_indices[:0]
        masked = batch.mask_indices if "ibot" in self.weights else nothing
        patches = [masked, *[nothing] * (len(crops) - 1)]
        outputs = network.backbone.forward_features(crops, masks, patches)
        return {
            "dino": [output["x_norm_clstoken"] for output in outputs],
            "ibot": [outputs[0]["x_norm_patchtokens"]],
        }

    def _scores(
        self, network: Network, tokens: Mapping[str, list[Tensor]]
    ) -> dict[str, list[Scores]]:
        """Scores of the tokens of each nested loss that is computed.

        Everything that one head sees goes through it in one call.
        """
        losses: dict[NestedPrototypeHead, list[str]] = {}
        for name in tokens:
            if name in self.weights:
                losses.setdefault(network.head_of(name), []).append(name)
        scores: dict[str, list[Scores]] = {}
        for head, names in losses.items():
            found = iter(self._score(head, [part for name in names for part in tokens[name]]))
            scores |= {name: [next(found) for _ in tokens[name]] for name in names}
        return scores

    def _score(self, head: NestedPrototypeHead, inputs: list[Tensor]) -> list[Scores]:
        scores = Scores.of(head(torch.cat(inputs), streamed=self.streamed_scores))
        return list(split_rows(scores, [tokens.shape[0] for tokens in inputs]))


def build_student_backbone(config: Config, **overrides: Any) -> VisionTransformer:
    """The backbone of a configuration, with random weights; `overrides` win over it."""
    arguments = {
        "img_size": config.crops.global_crops_size,
        "init_std": config.student.init_std,
        "pos_embed_init_std": config.student.pos_embed_init_std,
        **backbone_arguments(asdict(config.student)),
    }
    return build_backbone(config.student.arch, **{**arguments, **overrides})


def _build_head(config: Config, section: str) -> NestedPrototypeHead:
    head = getattr(config, section)
    return NestedPrototypeHead(
        config.nesting_dims[-1],
        head.head_n_prototypes,
        nesting_dims=config.nesting_dims,
        n_layers=head.head_nlayers,
        hidden_dim=head.head_hidden_dim,
        bottleneck_dim=head.head_bottleneck_dim,
        projection=config.dino.projection,
        normalize=config.dino.normalize_bottleneck,
    )
