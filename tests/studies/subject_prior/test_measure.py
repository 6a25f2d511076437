from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.errors import DataError
from blip_diffusion.generation.invent import SubjectInventor, load_inventor
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from studies.subject_prior import measure as study
from studies.subject_prior.measure import ImageSet, PriorStudyConfig
from studies.subject_prior.subjects import chosen_categories, real_subjects
from tests.data.synthetic.synthetic_world import make_world
from tests.evaluation.fakes import Middle
from tests.models import save_with_prior

CONFIG = PriorStudyConfig(categories=2, seeds=2, probe_images=1, steps=2)


@pytest.fixture(scope="module")
def inventor(tiny_folder: Path, batch: SubjectBatch, tmp_path_factory: pytest.TempPathFactory) -> SubjectInventor:
    model = BlipDiffusionPipeline.from_pretrained(tiny_folder).model
    return load_inventor(str(save_with_prior(model, batch, tmp_path_factory.mktemp("prior"))))


def two_categories() -> AssetLibrary:
    """Return assets with held-out subjects of two categories."""
    world = make_world()
    cutouts = tuple(replace(one, split="heldout") if one.identity == "pot3" else one for one in world.cutouts)
    return replace(world, cutouts=cutouts)


def test_distances_of_known_tokens() -> None:
    tokens = torch.tensor([[[0.0, 0.0]], [[3.0, 3.0]]])
    distances = study.token_distances(tokens, tokens)
    torch.testing.assert_close(distances, torch.tensor([[0.0, 3.0], [3.0, 0.0]]))
    assert float(study.pairwise_mean(distances)) == 3


def test_diversity_is_relative_to_training_subjects() -> None:
    tokens = torch.tensor([0.0, 2.0, 0.0, 2.0])[:, None, None]
    sets = {
        study.TRAINING: ImageSet(["a", "a", "b", "b"], torch.empty(4, 0), tokens),
        study.INVENTED: ImageSet(["a", "a", "b", "b"], torch.empty(4, 0), tokens / 4),
    }

    def distances(one: ImageSet, rows: list[int]) -> torch.Tensor:
        assert one.tokens is not None
        return study.token_distances(one.tokens[rows], one.tokens[rows])

    result = study.diversity(sets, ["a", "b"], distances)
    assert list(result) == [study.INVENTED] and result[study.INVENTED].value == pytest.approx(0.25)


def test_nearest_training_subject_of_the_category() -> None:
    bank = ImageSet(["a", "a", "b"], torch.empty(0), torch.tensor([0.0, 1.0, 5.0])[:, None, None])
    sets = ImageSet(["a", "b"], torch.empty(0), torch.tensor([0.9, 0.0])[:, None, None])
    torch.testing.assert_close(study.nearest(sets, bank, ["a", "b"]), torch.tensor([0.1, 5.0]))


def test_small_study_writes_table_and_sheet(inventor: SubjectInventor, tmp_path: Path) -> None:
    table = study.measure(inventor, two_categories(), tmp_path, CONFIG, Middle())
    assert (tmp_path / "report.md").read_text() == table + "\n"
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    names = [study.INVENTED, study.PROMPT_ALONE, study.TRAINING, study.HELD_OUT, study.TRUE]
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in names]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (5 * 34 - 2, 2 * 34 - 2)


def test_real_subjects_are_of_the_chosen_categories(inventor: SubjectInventor) -> None:
    world = two_categories()
    categories = chosen_categories(world, 2, shown=1)
    subjects = real_subjects(inventor.model, world, categories, split="train", per_category=2)
    assert subjects.categories == [name for name in categories for _ in range(2)]
    assert len(subjects.tokens) == len(subjects.images) == len(subjects.references) == 4
    with pytest.raises(DataError, match="ask for at most that many"):
        chosen_categories(world, 1000, shown=1)


def test_errors(tmp_path: Path, tiny_folder: Path, world: AssetLibrary, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", str(tiny_folder), "--dataset", str(tmp_path / "world.zip"), "--out", str(tmp_path / "out")]
    assert study.main([*flags, "--seeds", "1"]) == 2 and "--seeds must be at least 2" in capsys.readouterr().err
    assert study.main(flags) == 2 and "There is no prior of subjects" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
