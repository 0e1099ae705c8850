"""kNN accuracy of the teacher at intervals, on labelled images that the configuration names."""

from __future__ import annotations

from franca_fast.config.checks import nesting_dims
from franca_fast.config.schema import Config
from franca_fast.models import VisionTransformer


class OnlineKnn:
    """What `pretrain` calls at intervals when `evaluation.knn_train` and `knn_test` are set.

    Args:
        config: names the images, and the nested widths at which they are classified.

    Raises:
        InputError: images that are missing.
    """

    def __init__(self, config: Config) -> None:
        from franca_fast.data import open_images

        self._sources = (config.evaluation.knn_train, config.evaluation.knn_test)
        self._nesting_dims = nesting_dims(config)
        for source in self._sources:
            open_images(source)

    def __call__(self, step: int, backbone: VisionTransformer) -> dict[str, float]:
        """Returns {"knn/<dimension>/<k>": accuracy in per cent} of the CLS features."""
        from franca_fast.evaluation import embed, knn

        train, test = (embed(backbone, source) for source in self._sources)
        return {
            f"knn/{m}/{k}": accuracy
            for m, at_k in knn(train, test, nesting_dims=self._nesting_dims).items()
            for k, accuracy in at_k.items()
        }
