"""Probes are fitted to subjects outside the benchmark."""

import pytest

from blip_diffusion.data.benchmarks.dreambench import Bench
from blip_diffusion.evaluation.metrics.probe_data import ProbeSource, build_probe_data
from tests.evaluation.fakes import SIZE, WORLD, identity


def source(excluded: set[str]) -> ProbeSource:
    return ProbeSource(WORLD, frozenset(excluded), identity, SIZE)


def test_probe_data_exclude_the_benchmark(bench: Bench) -> None:
    """One held-out subject is outside of the benchmark: the grey dog."""
    with pytest.raises(Exception, match="no held-out subject outside"):
        build_probe_data(source({f"held{i}" for i in range(4)}), each=1)
    probe_data = build_probe_data(source({subject.identity for subject in bench.subjects}), each=1)
    assert len(probe_data.images) == len(probe_data.requests) == len(probe_data.captions)
    assert {caption.split()[1] for caption in probe_data.captions} == {"dog"}
