import torch

from blip_diffusion.modules.projection import SubjectProjection, quick_gelu


def test_quick_gelu_equals_that_of_clip() -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-5, 5, 41)
    torch.testing.assert_close(quick_gelu(x), ACT2FN["quick_gelu"](x))


def test_projection_has_a_residual_before_the_norm() -> None:
    """The published order, whatever its comment says: the residual is the input, not the normalised input."""
    layer = SubjectProjection(8, 16).eval()
    torch.nn.init.zeros_(layer.down.weight)
    torch.nn.init.zeros_(layer.down.bias)
    queries = torch.randn(2, 3, 8) * 7 + 2
    assert torch.equal(layer(queries), queries)


def test_residual_does_not_depend_on_the_input_scale() -> None:
    layer, queries = SubjectProjection(8, 16).eval(), torch.randn(2, 3, 8)
    torch.testing.assert_close(layer(queries) - queries, layer(queries * 9) - queries * 9, atol=1e-5, rtol=1e-5)


def test_dropout_is_active_in_training_only() -> None:
    layer, queries = SubjectProjection(8, 16), torch.randn(2, 3, 8)
    assert not torch.equal(layer.train()(queries), layer(queries))
    assert torch.equal(layer.eval()(queries), layer(queries))
