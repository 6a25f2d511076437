"""Image search by a sentence: contrast (ITC) ranks all images, and matching (ITM) reranks the best.

Letters: `N` images, `Q` queries, `E` width of the contrastive vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.argument_checks import listed, one_text, whole_number
from blip_diffusion.blip2 import Blip2, RerankScore
from blip_diffusion.errors import InputError
from blip_diffusion.images import open_image
from blip_diffusion.pipelines.blip2_pipeline import Blip2Pipeline
from blip_diffusion.prompts import Words

BATCH = 32
RERANKED = 128
"""Number of the best images that matching reranks, as published."""
Source = str | Path | Image.Image


@dataclass(frozen=True)
class Match:
    """The scores of one image for the sentence."""

    index: int  # of the image in the list
    score: float  # `Blip2.rerank_scores` if matching was computed, else the cosine
    cosine: float  # of ITC, in [-1, 1]
    matching: float | None = None  # of ITM: the logit of a match


class ImageSearch(Blip2Pipeline):
    """Rank images by how well a sentence describes them (Li, Li, Savarese & Hoi 2023, section 4.4).

    `from_pretrained` loads a folder of the objective `representation`, transformers' `Blip2ForImageTextRetrieval`, or a
    `.pth` of LAVIS' stage 1.

    Args:
        model: A model with the head of ITC, and for reranking that of ITM.

    Raises:
        CheckpointError: If the model has no head of ITC.

    Example:
        >>> search = ImageSearch.from_pretrained("Salesforce/blip2-itm-vit-g")
        >>> search("a red teapot", paths)[0].index
        3
    """

    def __init__(self, model: Blip2) -> None:
        super().__init__(model)
        _ = model.itc_head  # which raises if there is none

    def __call__(
        self,
        sentence: str,
        images: Sequence[Source],
        *,
        rerank: int = RERANKED,
        rerank_score: RerankScore = "published",
    ) -> list[Match]:
        """Rank images, the best first.

        Args:
            sentence: A description such as "a red teapot"; it is truncated to 35 tokens.
            images: N images, or their paths, which are opened in batches.
            rerank: Number of the best images that matching reranks; 0 for none.
            rerank_score: How matching and the cosine are added (`Blip2.rerank_scores`). "posterior" suits models that
                this project trained.

        Returns:
            N matches, the reranked ones first.

        Raises:
            InputError: For an empty sentence, no images, an image that can't be read, or another `rerank_score`.
            CheckpointError: For `rerank` above 0 and a model without the head of ITM, or, for "posterior", without a
                temperature.

        Example:
            >>> [match.index for match in search("a dog on the beach", paths, rerank=16)[:3]]
        """
        rerank = whole_number("rerank", rerank, 0)
        images = listed("images", images, "images or paths")
        if not one_text("sentence", sentence).strip():
            raise InputError("The sentence is empty: describe an image, for example a red teapot.")
        if rerank:  # which raises if the model can't, before images are encoded
            _ = self.model.itm_head, self.model.rerank_scores(torch.zeros(0, 2), torch.zeros(0), rerank_score)
        words = self.model.sentence_words([sentence])
        features: dict[int, Tensor] = {}
        cosines = self._cosines(images, words, features, rerank)
        order = cosines.argsort(descending=True).tolist()
        first = order[:rerank]
        logits = self._logits([features[index] for index in first], words)
        scores = self.model.rerank_scores(logits, cosines[first], rerank_score).tolist()
        best = [Match(i, total, cosines[i].item(), logit)
                for i, total, logit in zip(first, scores, logits[:, 1].tolist(), strict=True)]  # fmt: skip
        others = [Match(index, cosines[index].item(), cosines[index].item()) for index in order[rerank:]]
        return sorted(best, key=lambda match: -match.score) + others

    @torch.no_grad()
    def _cosines(self, images: Sequence[Source], words: Words, features: dict[int, Tensor], keep: int) -> Tensor:
        """Return the cosines (N,) of ITC, and put the features of the `keep` best images into `features`."""
        sentence = self.model.sentence_vectors(words)
        if not images:
            raise InputError("There are no images to search: give at least one.")
        cosines = torch.empty(0)
        for first in range(0, len(images), BATCH):
            batch = self._features_of(images[first : first + BATCH])
            batch_cosines = self.model.itc(self.model.image_vectors(batch), sentence)[:, 0]
            cosines = torch.cat([cosines, batch_cosines.float().cpu()])
            features |= {first + row: one for row, one in enumerate(batch)}
            best = set(cosines.argsort(descending=True)[:keep].tolist())
            for index in features.keys() - best:
                del features[index]
        return cosines

    @torch.no_grad()
    def _logits(self, encoded: Sequence[Tensor], words: Words) -> Tensor:
        """Return ITM's logits (N, 2) of N images, given their features, with the sentence."""
        logits = [torch.zeros(0, 2)]
        for first in range(0, len(encoded), BATCH):
            features = torch.stack(list(encoded[first : first + BATCH]))
            same = Words(*(t.expand(len(features), -1) for t in (words.input_ids, words.attention_mask)))
            logits.append(self.model.itm(features, same).float().cpu())
        return torch.cat(logits)

    def _features_of(self, sources: Sequence[Source]) -> Tensor:
        opened = [source if isinstance(source, Image.Image) else open_image(source) for source in sources]
        return self._features(self._squares(opened))
